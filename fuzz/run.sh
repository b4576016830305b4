#!/usr/bin/env bash
# Runs fuzz targets for some seconds each, from the seeds, with a corpus that is thrown away:
#
#     fuzz/run.sh SECONDS [TARGET...]
#     fuzz/run.sh build                   only builds them
#
# Prints how many inputs each has executed; fails if any of them crashed. What crashed is in
# fuzz/artifacts/<target>/.
set -euo pipefail
seconds=${1:?usage: fuzz/run.sh SECONDS|build [TARGET...]}
shift
# cargo-fuzz looks for the fuzz directory below the one it is called in.
cd "$(dirname "$0")/.."

# cargo-fuzz needs the unstable options of the compiler, and a stable one has them behind this.
case $(rustc --version) in
    *nightly*) ;;
    *) export RUSTC_BOOTSTRAP=1 ;;
esac
target=${CARGO_TARGET_DIR:-fuzz/target}
[[ -z ${CARGO_TARGET_DIR:-} ]] || target=$target/fuzz
mkdir -p "$target"
cargo fuzz build --target-dir "$target"
[[ $seconds != build ]] || exit 0

targets=("$@")
(($#)) || mapfile -t targets < <(cargo fuzz list)
corpora=$(mktemp -d "$target/corpora.XXXXXX")
trap 'rm -rf "$corpora"' EXIT
failed=()
for name in "${targets[@]}"; do
    options=(-max_total_time="$seconds" -print_final_stats=1 -timeout=30 -max_len=4096)
    # Its threads allocate and free at any time, which the leak check takes for leaks, and looks.
    [[ $name != session ]] || options+=(-detect_leaks=0)
    mkdir "$corpora/$name"
    log=$corpora/$name.log
    if cargo fuzz run --target-dir "$target" "$name" "$corpora/$name" "fuzz/seeds/$name" \
        -- "${options[@]}" >"$log" 2>&1; then
        executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "$name: $executed executions in $seconds s, $(ls "$corpora/$name" | wc -l) new inputs kept"
    else
        failed+=("$name")
        # Without the progress until then.
        grep -v '^#[0-9]\|NEW_FUNC\|^INFO' "$log" || true
        echo "$name: FAILED" >&2
    fi
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
