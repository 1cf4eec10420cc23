#!/usr/bin/env bash
# Deploys the script (push.sh script) or the examples (push.sh examples) to a
# Windmill workspace, and runs the deployed script (push.sh try). `push.sh lint`
# only checks the files; `push.sh workspace` tells the wmill CLI of a workspace.
#
# The workspace is the one that WMILL_BASE_URL, WMILL_WORKSPACE and WMILL_TOKEN
# name, or that the further arguments name, which are flags of the wmill CLI, or
# else the CLI's active one. FOLDER is the folder there, ServiceNow by default.
#
# Of the script only code, summary, description and form are updated. Everything else
# is created where it is missing. Neither `wmill sync push`, which deletes what it does
# not find here, nor `wmill generate-metadata`, which takes the resource picker away,
# has a place here.
set -euo pipefail
umask 077 # the CLI keeps a token in a file
cd "$(dirname "$0")"
what=${1:-}
[ $# -eq 0 ] || shift
flags=("$@")
limit=${PUSH_WAIT:-180} # seconds that a job of Windmill's is waited for
call_limit=60           # seconds that one command of the CLI takes at most
folder=${FOLDER:-ServiceNow}
script=f/$folder/get_token

# plain takes out the colours, because the CLI ignores NO_COLOR, and its advice to run
# what would delete the resource picker.
plain() { sed -e $'s/\e\\[[0-9;]*m//g' -e '/generate-metadata/d' -e '/wmill-lock.yaml created/d'; }

fail() {
  printf '%s\n' "$@" | plain >&2
  exit 1
}

case $folder in
  *[!A-Za-z0-9_]*)
    fail "FOLDER may have letters, digits and _ only: it is the name of a folder in Windmill, such as ServiceNowDev." ;;
esac
node=0
if command -v npm >/dev/null && command -v node >/dev/null; then node=$(node -p 'parseInt(process.versions.node)'); fi
[ "$node" -ge 18 ] ||
  fail "The wmill CLI needs Node.js 18 or newer, with npm:" \
    "https://nodejs.org, or your system's packages nodejs and npm."
[ "$node" -gt 18 ] || export NODE_OPTIONS=--experimental-global-webcrypto # which the CLI takes for granted

# The CLI of the lock file, whatever else is installed. Its install scripts are not needed.
installed=cli/node_modules/.installed
if ! cmp -s cli/package-lock.json $installed; then
  echo "Installing the wmill CLI in windmill/cli (once) …"
  npm ci --prefix cli --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel error \
    --fetch-retries 1 >/dev/null || fail "The wmill CLI could not be installed: does this machine reach the npm registry?"
  cp cli/package-lock.json $installed
fi
cli=$PWD/cli/node_modules/windmill-cli/esm/main.js
helper=$PWD/cli/push.mjs

# Lay everything out as the CLI wants it, in copies that name this folder.
layout=$(mktemp -d)
trap 'rm -rf "$layout"' EXIT
copy() { sed -E "s#f/ServiceNow([^A-Za-z0-9]|\$)#f/$folder\1#g" "$1" >"$layout/$2"; }
find f -type d | while read -r name; do mkdir -p "$layout/${name/#f\/ServiceNow/f/$folder}"; done
find f -type f | while read -r name; do copy "$name" "${name/#f\/ServiceNow/f/$folder}"; done
copy servicenow.resource-type.yaml servicenow.resource-type.yaml
copy ../main.go "$script.go"
copy ../script.yaml "$script.script.yaml"
cd "$layout"
printf 'defaultTs: bun\nsyncBehavior: v1\n' >wmill.yaml # without the latter the CLI drops "on behalf of"

# A token on a command line is there for every user of the machine to see, so the
# CLI gets it from the environment. It looks there only if it knows no workspace.
if [ -n "${WMILL_BASE_URL:-}${WMILL_WORKSPACE:-}${WMILL_TOKEN:-}" ]; then
  [ -n "${WMILL_BASE_URL:-}" ] && [ -n "${WMILL_WORKSPACE:-}" ] && [ -n "${WMILL_TOKEN:-}" ] ||
    fail "WMILL_BASE_URL, WMILL_WORKSPACE and WMILL_TOKEN go together: set all three, or none."
  case $WMILL_BASE_URL in
    http://?* | https://?*) ;;
    *) fail "WMILL_BASE_URL must be your Windmill's address, such as https://app.windmill.dev." ;;
  esac
  export BASE_INTERNAL_URL=${WMILL_BASE_URL%/}/ WM_WORKSPACE=$WMILL_WORKSPACE WM_TOKEN=$WMILL_TOKEN
  export WMILL_CONFIG_DIR=$PWD/no-config
fi

# wmill runs the CLI. What it printed is in $output, what it complained of in $said.
wmill() {
  local status=0
  output=$(node "$helper" run "$call_limit" "$cli" "$@" ${flags[@]+"${flags[@]}"} </dev/null 2>said) || status=$?
  said=$(<said)
  return $status
}

# log_in sees that there is a workspace and a token for it, before anything else.
log_in() {
  echo "Logging in to Windmill …"
  if wmill workspace whoami; then return; fi
  case $said in
    *"No workspace given"*)
      fail "No workspace: run \`make workspace\` once," \
        "or set WMILL_BASE_URL, WMILL_WORKSPACE and WMILL_TOKEN in the environment." ;;
    *) fail "Cannot log in to Windmill${WMILL_BASE_URL:+ at $WMILL_BASE_URL}: it did not accept the token," \
      "or what is there did not answer as Windmill does. The CLI says:" "$said" ;;
  esac
}

# have tells whether the workspace has something, which is then in $output.
have() {
  local kind=$1 name=$2
  if wmill "$kind" get "$name" --json; then return; fi
  case $said in
    *"Server failed. Not Found"*) return 1 ;;
    *) fail "$kind $name: cannot tell whether it is already there" "$said" ;;
  esac
}

# create KIND NAME PUSH-ARGUMENTS… pushes what the workspace does not have yet.
create() {
  local kind=$1 name=$2
  shift 2
  if have "$kind" "$name"; then
    echo "$kind $name: already there, left as it is"
    return
  fi
  wmill "$kind" push "$@" || fail "$kind $name: not pushed" "$output" "$said"
  echo "$kind $name: created"
}

# create_type sets $type to a resource type with the fields that the script reads.
create_type() {
  wmill resource-type list --json || fail "resource-type servicenow: cannot tell whether it is already there" "$said"
  local types=$output lacks
  for type in servicenow c_servicenow; do
    lacks=$(node "$helper" lacks "$type" <<<"$types")
    case $lacks in
      none)
        echo "resource-type $type: already there, left as it is"
        return ;;
      all)
        wmill resource-type push servicenow.resource-type.yaml "$type" ||
          fail "resource-type $type: not pushed" "$output" "$said"
        echo "resource-type $type: created"
        return ;;
      *) echo "resource-type $type: already there, left as it is, but it lacks $lacks" ;;
    esac
  done
  fail "Neither resource type has the fields that the script reads." \
    "Delete c_servicenow, or add what it lacks; then push again."
}

push_script() {
  local current='' former pushed lock waiting=''
  if have script "$script"; then current=$output; fi
  node "$helper" merge "$script" "$type" <<<"$current" || exit 1
  wmill script push "$script.go" || fail "script $script: not pushed" "$output" "$said"
  pushed=$output

  # The version before goes on running until Windmill has locked the dependencies.
  SECONDS=0
  while :; do
    lock=pending
    if wmill script get "$script" --json; then lock=$(node "$helper" lock <<<"$output"); fi
    [ "$lock" = pending ] || break
    [ -n "$waiting" ] || echo "script $script: pushed; waiting for Windmill to lock its dependencies"
    waiting=yes
    [ $SECONDS -lt "$limit" ] ||
      fail "script $script: pushed, but not deployed after $limit seconds: its dependencies are not locked yet." \
        "Until they are, the version before goes on running, if there was one." \
        "Look at Runs (dependency jobs) and Workers in Windmill, then push again."
    sleep 1
  done
  [ "$lock" = locked ] || fail "script $script: not deployed: Windmill could not lock its dependencies." "$lock" \
    "The version before goes on running, if there was one. Mend the cause, then push again."
  if [ -z "$waiting" ] && [[ $pushed == *"is up to date"* ]]; then
    echo "script $script: up to date"
  else
    echo "script $script: deployed"
  fi
  former=$(node "$helper" owner <<<"$current")
  [ "$former" = "$(node "$helper" owner <<<"$output")" ] ||
    fail "script $script: it ran on behalf of $former, and no longer does." \
      "Only an admin or a member of wm_deployers can keep that: have one of them set it again, and push from then on."
}

case $what in
  script)
    log_in
    create_type
    create folder "$folder" "$folder"
    create folder "${folder}_login" "${folder}_login"
    push_script
    ;;
  examples)
    log_in
    create schedule "f/$folder/warm_token" "f/$folder/warm_token.schedule.yaml" "f/$folder/warm_token"
    create flow "f/$folder/open_incidents" "f/$folder/open_incidents.flow" "f/$folder/open_incidents"
    ;;
  try)
    log_in
    have script "$script" || fail "script $script: not there. Run \`make push\` first."
    node "$helper" arguments "${RESOURCE:-f/${folder}_login/servicenow}" |
      node "$helper" run "$limit" "$cli" script run "$script" -d @- ${flags[@]+"${flags[@]}"} 2>&1 | plain
    ;;
  workspace)
    [ -z "${WMILL_TOKEN:-}" ] || fail "WMILL_BASE_URL, WMILL_WORKSPACE and WMILL_TOKEN name a workspace already." \
      "To have the wmill CLI keep one instead, unset them first."
    node "$cli" workspace add ${flags[@]+"${flags[@]}"} ;;
  lint)
    wmill lint . --fail-on-warn || fail "$output" "$said"
    printf '%s\n' "$output" | plain
    ;;
  *) fail "usage: push.sh script|examples|try|workspace|lint [flags of the wmill CLI]" ;;
esac
