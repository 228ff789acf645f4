#!/usr/bin/env bash
# Checks and benchmarks on an NVIDIA card, in a few minutes, with binaries that were built elsewhere.
#
#   tests/gpu.sh build BINARIES           on a machine with Rust: builds the binaries into that folder
#   tests/gpu.sh run BINARIES [REPORT]    on a machine with a card: checks and times, prints a report and writes it to
#                                         REPORT, and the times as JSON beside it, under its name with the ending .json
#
# ONLY="checks timings" runs these sections alone, of checks, sanitizer, timings, profile, wgpu, peers. COMPARE=OLD.json
# sets the times of an earlier run beside those of this one.
#
# `run` needs the repository's files, NVIDIA's driver, and a Python with PyTorch, diffusers and safetensors (variable
# PYTHON). It uses compute-sanitizer of the CUDA toolkit if present, and checks and times the WGSL kernels if the driver
# has Vulkan. Without a card it exits with code 4, as the engine does. SECONDS_A_CASE is the time per benchmark case,
# 0.2 by default.
set -euo pipefail
# Arguments are relative to the caller's folder, the repository's files to its root.
paths=()
for path in "${@:2}"; do
    paths+=("$(realpath -m -- "$path")")
done
set -- "${1:-}" "${paths[@]}"
COMPARE=${COMPARE:+$(realpath -m -- "$COMPARE")}
cd "$(dirname "$0")/.."
readonly PYTHON="${PYTHON:-python3}" SECONDS_A_CASE="${SECONDS_A_CASE:-0.2}"
readonly ONLY="${ONLY:-checks sanitizer timings profile wgpu peers}" COMPARE
readonly TYPES=(f16 bf16 tf32 f32)
readonly PEERS=benches/peers/compare_cases.py
readonly COLLECT=benches/peers/gpu_report.py
readonly LIMIT=(timeout --kill-after 10 150) # a kernel that never ends must not block the other checks

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' tests/gpu.sh >&2
    exit 2
}

# The executable of a cargo target, from cargo's messages on standard input.
built() {
    "$PYTHON" -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[1]:
        print(message["executable"])' "$1" | tail -n 1
}

build() {
    local folder=$1 messages name
    local features=(--release --no-default-features --features cli,wgpu,cuda,cuda-emulator --message-format=json)
    mkdir -p "$folder"
    messages=$(cargo test --no-run --test cuda --test cuda_statistics --test wgpu "${features[@]}")
    for name in cuda cuda_statistics wgpu; do
        cp "$(built "$name" <<<"$messages")" "$folder/$name"
    done
    messages=$(cargo build --bin engine "${features[@]}")
    cp "$(built engine <<<"$messages")" "$folder/engine"
    echo "$folder: engine, cuda, cuda_statistics, wgpu"
}

# Whether a section is to be run.
wanted() {
    [[ " $ONLY " == *" $1 "* ]]
}

# Runs a check, logs its output, and adds a line to the report. A failure does not stop the other checks.
failed=0
check() {
    local name=$1 log=$2 started=$SECONDS status=0
    shift 2
    "$@" >"$log" 2>&1 || status=$?
    case $status in
    0) echo "- $name: passed in $((SECONDS - started)) s" ;;
    124 | 137) echo "- $name: **timed out**, see $log" && failed=1 ;;
    *) echo "- $name: **failed** with exit code $status, see $log" && failed=1 ;;
    esac >>"$report"
    tail -n 1 "$report"
}

# Compares a picture of the tiny checkpoint on the CPU and on the card, tensor by tensor.
trace() {
    local device
    for device in cpu cuda; do
        "${LIMIT[@]}" "$engine" run -q -m tests/golden/tiny -p "a red frog on a green leaf" --prior-steps 5 --decoder-steps 4 \
            --super-res-steps 3 --device "$device" -o "$work/$device.png" --trace "$work/$device.safetensors"
    done
    "$PYTHON" "$PEERS" --trace "$work/cpu.safetensors" "$work/cuda.safetensors"
}

# Times the engine on a device, in a type, for each case that PyTorch has too. Networks, whose weights take long to
# draw, are timed in f16 only.
bench() {
    local filters=() name
    while read -r name; do
        [[ $2 != f16 && $name == */karlo ]] || filters+=(--filter "$name")
    done < <("$PYTHON" "$PEERS" --cases)
    "${LIMIT[@]}" "$engine" bench --device "$1" --dtype "$2" --seconds "$SECONDS_A_CASE" --json "${filters[@]}" >"$work/$1-$2.json"
}

# Every kernel of the networks of a picture.
profile() {
    local filters=() network
    for network in prior decoder super_res_first; do
        filters+=(--filter "$network/karlo")
    done
    "${LIMIT[@]}" "$engine" bench --device cuda --dtype f16 --seconds "$SECONDS_A_CASE" --profile --json "${filters[@]}" \
        >"$work/profile.json"
}

# The times of all reports in one file, and beside those of an earlier run.
collect() {
    local reports=()
    for name in profile "$@"; do
        [[ ! -s $work/$name.json ]] || reports+=("$work/$name.json")
    done
    ((${#reports[@]})) || return 0
    "$PYTHON" "$COLLECT" collect "${report%.md}.json" "${reports[@]}"
    [[ -z $COMPARE ]] || "$PYTHON" "$COLLECT" compare "$COMPARE" "${report%.md}.json" >>"$report"
}

run() {
    local binaries=$1 cases statistics shaders adapter section type name timed=()
    for section in $ONLY; do
        case $section in
        checks | sanitizer | timings | profile | wgpu | peers) ;;
        *) usage ;;
        esac
    done
    report=${2:-gpu-report.md}
    if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        echo "gpu.sh: no NVIDIA card found by nvidia-smi" >&2
        exit 4
    fi
    engine=$(realpath "$binaries/engine") cases=$(realpath "$binaries/cuda") work=$(mktemp -d)
    statistics=$(realpath "$binaries/cuda_statistics") shaders=$(realpath "$binaries/wgpu")
    export REQUIRE_BACKENDS=cuda,wgpu # a skipped test counts as failed
    {
        echo "## $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1), $(date +%F)"
        echo
    } >"$report"
    if wanted checks; then
        check "all cases against f64 loops" "$work/cases.log" "${LIMIT[@]}" "$cases" on_a_gpu --test-threads 1
        check "norms after matmuls against the CPU" "$work/statistics.log" "${LIMIT[@]}" "$statistics" on_a_gpu
        check "the tiny checkpoint against the CPU" "$work/trace.log" trace
    fi
    if ! wanted sanitizer; then
        :
    elif command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            check "all cases under compute-sanitizer's $tool" "$work/$tool.log" \
                "${LIMIT[@]}" compute-sanitizer --tool "$tool" --error-exitcode 9 "$cases" on_a_gpu --test-threads 1
        done
    else
        echo "- no compute-sanitizer on this machine" | tee -a "$report"
    fi
    for type in "${TYPES[@]}"; do
        wanted timings || break
        check "timings in $type" "$work/bench-$type.log" bench cuda "$type"
        timed+=("cuda-$type")
    done
    if wanted profile; then
        check "every kernel of the networks" "$work/profile.log" profile
    fi
    # The tests use the first adapter; a software adapter would not test the card.
    adapter=$("$engine" devices 2>/dev/null | grep '^wgpu:0 ' || true)
    if ! wanted wgpu; then
        :
    elif [[ $adapter == *"(discrete"* ]]; then
        check "all cases in WGSL against f64 loops" "$work/shaders.log" "${LIMIT[@]}" "$shaders" matches_the_reference
        for type in f16 f32; do
            check "timings in WGSL, $type" "$work/bench-wgpu-$type.log" bench wgpu "$type"
            timed+=("wgpu-$type")
        done
    else
        echo "- no Vulkan driver for the card on this machine" | tee -a "$report"
    fi
    echo >>"$report"
    collect "${timed[@]}" || failed=1
    for name in "${timed[@]}"; do
        wanted peers || break
        if [[ -s $work/$name.json ]]; then
            "$PYTHON" "$PEERS" --device cuda --compile --seconds "$SECONDS_A_CASE" "$work/$name.json" >>"$report" || failed=1
        fi
    done
    cat "$report"
    exit "$failed"
}

case "${1:-} $#" in
"build 2") build "$2" ;;
"run 2" | "run 3") run "${@:2}" ;;
*) usage ;;
esac
