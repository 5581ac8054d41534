#!/usr/bin/env bash
# Measures every target of bench.suite=gpu in under 8 minutes, from a bare copy of this repository, without network:
#   tests/gpu/bars.sh OUT [override ...]        writes OUT/bars.json and OUT/bars.md
# Packages that the Python lacks are installed from the wheels in the folder WHEELS (default: wheels/ in the repository);
# with fla-core and einops among them, the kernels of flash-linear-attention are timed too.
# PYTHON=... selects another interpreter than python3.
# A rehearsal on a CPU: tests/gpu/bars.sh OUT trainer=cpu model=tiny model.n_layer=2 model.vocab_size=512
set -euo pipefail
out=${1:?usage: bars.sh OUT [override ...]}
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
wheels=${WHEELS:-$root/wheels}
python=${PYTHON:-python3}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --target "$work/site" "$wheels"/*.whl
  export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 PYTHONUNBUFFERED=1
# The tables are written after every group of models, so a time limit loses only the groups after it.
code=0
timeout -k 10 "${LIMIT_S:-470}" "$python" "$root/run.py" task=bench bench.suite=gpu bench.rounds=20 bench.budget_s=380 \
  hydra.run.dir="$work/run" "$@" || code=$?
for pair in bench.json:bars.json table.md:bars.md; do
  if [ -e "$work/run/${pair%:*}" ]; then cp "$work/run/${pair%:*}" "$out/${pair#*:}"; fi
done
[ -e "$out/bars.md" ] || { echo "no group of models was timed (exit code $code)" >&2; exit 1; }
echo "bars: $out/bars.md and $out/bars.json (exit code $code)"
