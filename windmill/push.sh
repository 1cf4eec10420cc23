#!/usr/bin/env bash
# Pushes the script (push.sh script) or the examples (push.sh examples) to a
# Windmill workspace: the one that the further arguments name, which are flags of
# the wmill CLI, or else the CLI's active one. `push.sh lint` only checks the files.
#
# Only the script itself is ever updated; what else the workspace has is left as
# it is. Neither `wmill sync push`, which deletes what it does not find here, nor
# `wmill generate-metadata`, which takes the resource picker away, has a place here.
set -euo pipefail
cd "$(dirname "$0")"
what=$1
shift

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

command -v npm >/dev/null && command -v node >/dev/null ||
  fail "The wmill CLI needs Node.js 18 or newer, with npm: https://nodejs.org, or your system's packages nodejs and npm."

# The CLI of the lock file, whatever else is installed. Its install scripts are not needed.
installed=cli/node_modules/.package-lock.json
if [ ! -e $installed ] || [ cli/package-lock.json -nt $installed ]; then
  npm ci --prefix cli --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel error >/dev/null
  touch $installed
fi
cli=$PWD/cli/node_modules/windmill-cli/esm/main.js

# Lay everything out as the CLI wants it.
layout=../.build/workspace
rm -rf $layout
mkdir -p $layout
cp -R f servicenow.resource-type.yaml $layout/
cp ../main.go $layout/f/ServiceNow/get_token.go
cp ../script.yaml $layout/f/ServiceNow/get_token.script.yaml
cd $layout

# wmill runs the CLI, quietly unless it fails.
wmill() {
  if ! output=$(NO_COLOR=1 node "$cli" "$@" </dev/null 2>&1); then
    case $output in
      *"No workspace given"*)
        fail "No workspace: run \`wmill workspace add\` once, or give WMILL_FLAGS='--base-url https://… --token … --workspace …'." ;;
      *) return 1 ;;
    esac
  fi
}

# create KIND NAME PUSH-ARGUMENTS… pushes what the workspace does not have yet.
create() {
  local kind=$1 name=$2
  shift 2
  if wmill "$kind" get "$name" "${flags[@]}"; then
    echo "$kind $name: already there, left as it is"
    return
  fi
  case $output in
    *"Server failed. Not Found"*) ;;
    *) fail "$kind $name: cannot tell whether it is already there" "$output" ;;
  esac
  wmill "$kind" push "$@" "${flags[@]}" || fail "$kind $name: not pushed" "$output"
  echo "$kind $name: created"
}

flags=("$@")
case $what in
  script)
    create resource-type servicenow servicenow.resource-type.yaml servicenow
    create folder ServiceNow ServiceNow
    if current=$(node "$cli" script get f/ServiceNow/get_token --json "${flags[@]}" </dev/null 2>/dev/null); then
      node "$OLDPWD/cli/keep-lock.mjs" <<<"$current"
    fi
    wmill script push f/ServiceNow/get_token.go "${flags[@]}" || fail "script f/ServiceNow/get_token: not pushed" "$output"
    case $output in
      *"is up to date"*) echo "script f/ServiceNow/get_token: up to date" ;;
      *) echo "script f/ServiceNow/get_token: pushed" ;;
    esac
    ;;
  examples)
    create schedule f/ServiceNow/warm_token f/ServiceNow/warm_token.schedule.yaml f/ServiceNow/warm_token
    create flow f/ServiceNow/open_incidents f/ServiceNow/open_incidents.flow f/ServiceNow/open_incidents
    ;;
  lint)
    wmill lint . --fail-on-warn || fail "$output"
    printf '%s\n' "$output"
    ;;
  *) fail "usage: push.sh script|examples|lint [flags of the wmill CLI]" ;;
esac
