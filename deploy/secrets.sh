#!/bin/sh
# The secrets that docker-compose.yml mounts, drawn once into ./secrets. The folder is for its owner alone; the files in it are
# readable, since the containers' users are others.
set -eu
cd "$(dirname "$0")/.."
if [ -e secrets ]; then echo "secrets/ is there already: nothing is overwritten" >&2; exit 1; fi
umask 077
mkdir secrets
draw() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
postgres=$(draw)
service=$(draw)
store=$(draw)
printf '%s' "$postgres" > secrets/postgres_password
printf 'postgresql://expunge:%s@postgres/expunge' "$postgres" > secrets/expunge_owner_database_url
printf 'postgresql://expunge_service:%s@postgres/expunge' "$service" > secrets/expunge_database_url
printf '[default]\naws_access_key_id = expunge\naws_secret_access_key = %s\n' "$store" > secrets/store_credentials
printf 'ROOT_ACCESS_KEY=expunge\nROOT_SECRET_KEY=%s\n' "$store" > secrets/store.env
chmod 644 secrets/*
