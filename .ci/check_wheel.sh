#!/usr/bin/env bash
# Builds the source distribution, and the wheel from it; installs the wheel into an empty environment, and uses it from
# a folder with a `judges` package of its own, without the checkout on the path.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv="$root/.venv/bin/python"

# From a copy of what git knows: setuptools leaves files behind, and would take others with it.
mkdir "$work/src"
(cd "$root" && git ls-files -z --cached --others --exclude-standard | tar --null --create --files-from=- --file=-) |
    tar --extract --directory="$work/src" --file=-
(cd "$work/src" && "$venv" -c 'from setuptools.build_meta import build_sdist; print(build_sdist("../dist"))') \
    > "$work/sdist.log" 2>&1 || { cat "$work/sdist.log"; exit 1; }
"$venv" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$work"/dist/*.tar.gz
"$root/.venv/bin/twine" check --strict "$work"/dist/*

# Nothing is in there but the wheel. The libraries are the checkout's: a path in a .pth file brings no other .pth files,
# and so not the editable installation either.
"$venv" -m venv --without-pip "$work/empty"
"$venv" -m pip --python "$work/empty/bin/python" install --quiet --no-deps "$work"/dist/*.whl
python="$work/empty/bin/python"
cd "$work"
"$venv" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"

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
where=$("$python" -c 'import online_dpo, judges, actors; print(online_dpo.__file__, judges.__file__, actors.__file__)')
case "$where" in *"$root"*) echo "the checkout was imported instead of the wheel: $where"; exit 1 ;; esac
command="$work/empty/bin/online-dpo"
test "$("$command" --version)" = "$(cd "$root" && "$venv" -m online_dpo.cli --version)"
"$command" validate "$root/configs/reviews.yaml"
"$command" run config.yaml
"$command" status runs/wheel
"$command" export runs/wheel merged --merge
test -s merged/model.safetensors
echo "the wheel works outside the checkout"
