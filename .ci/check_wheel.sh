#!/usr/bin/env bash
# Builds the wheel and uses it from a folder with a `judges` package of its own, without the checkout on the path.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$root/.venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$root"
rm -rf "$root/build"
# The environment's libraries, but our own packages from the wheel alone: they come first on the path.
"$root/.venv/bin/python" -m pip install --quiet --no-deps --target "$work/site" "$work"/dist/*.whl
mkdir -p "$work/elsewhere/judges" "$work/elsewhere/actors"
cd "$work/elsewhere"
echo 'raise RuntimeError("the user'"'"'s own judges package was imported")' | tee judges/__init__.py > actors/__init__.py
printf 'def score(prompt, completion):\n    return completion.count("e") / (1 + len(completion))\n' > judges/mine.py
cat > config.yaml <<'YAML'
run: {name: wheel, rounds: 1}
model: {path: "embedded:policy"}
prompts: {source: "embedded:openings/train", per_round: 8, max_tokens: 32}
sampling: {num_samples: 2, max_tokens: 8}
judge: {type: python, target: "judges/mine.py:score"}
evaluation: {sets: {heldout: {source: "embedded:openings/heldout", count: 4}}, judges: {gold: {type: python, target: "embedded:gold"}}}
learner: {lr: 1.0e-3}
YAML
export PYTHONPATH="$work/site"
python="$root/.venv/bin/python"
where=$("$python" -c 'import online_dpo, judges, actors; print(online_dpo.__file__, judges.__file__, actors.__file__)')
case "$where" in *"$root"*) echo "the checkout was imported instead of the wheel: $where"; exit 1 ;; esac
"$python" -m online_dpo.cli run config.yaml
"$python" -m online_dpo.cli status runs/wheel
"$python" -m online_dpo.cli export runs/wheel merged --merge
test -s merged/model.safetensors
echo "the wheel works outside the checkout"
