#!/usr/bin/env bash
# Install var into .venv, if that has not been done, and sample a grid of images, from a model that
# comes with this repository, into samples.png in the current folder.
#   bash scripts/demo.sh
# PYTHON names the interpreter to make .venv with.
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment
"$bin/var-sample" model=fashion-var number=10 seed=0 upscale=2 out=samples.png
echo "A grid of images, one row per class: $PWD/samples.png"
echo "For more: $bin/var-sample --help"
