#!/usr/bin/env bash
# Start SGLang with its two keys read from files: ddtree-serve FLAGS OF sglang.launch_server.
# On a command line or in the environment, a key shows in `ps`, in `docker inspect` and in crash reports.
set -euo pipefail

secrets=${DDTREE_SECRETS:-/run/secrets}

# Print the key in a file. The characters are those that YAML and argparse both take as they are.
read_key() {
    local file=$secrets/$1 key
    if [[ ! -r "$file" ]]; then
        echo "ddtree-serve: $file must hold a key and be readable by $(id -un 2>/dev/null || id -u); mount it as a secret." >&2
        return 1
    fi
    key=$(<"$file")
    if [[ ! "$key" =~ ^[A-Za-z0-9][A-Za-z0-9._-]{15,}$ ]]; then
        echo "ddtree-serve: the key in $file must be at least 16 letters, digits, dots, underscores or dashes, a letter" \
            "or digit first; make one with: openssl rand -hex 32" >&2
        return 1
    fi
    printf '%s' "$key"
}

api_key=$(read_key ddtree_api_key)
admin_key=$(read_key ddtree_admin_api_key)
if [[ "$api_key" == "$admin_key" ]]; then
    echo "ddtree-serve: the admin key must not be the API key, or every client is an administrator." >&2
    exit 1
fi
# Only this user may read it: mktemp sees to that.
config=$(mktemp --suffix=.yaml)
printf 'api-key: "%s"\nadmin-api-key: "%s"\n' "$api_key" "$admin_key" >"$config"
exec python3 -m sglang.launch_server --config "$config" "$@"
