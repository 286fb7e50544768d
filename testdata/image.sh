#!/usr/bin/env bash
# Builds an image of the sample app from nothing but static binaries, so that no
# base image has to be pulled. usage: testdata/image.sh NAME [PROGRAM...]
# The programs, of this machine, come with the shared libraries that they need.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir -p "$context/root/data"
cp "$root/bin/slasha-init" "$root/bin/guestbook" "$context/root/"
for program in "${@:2}"; do
	for file in "$program" $(ldd "$program" 2>/dev/null | grep -o '/[^ ]*'); do
		mkdir -p "$context/root$(dirname "$file")"
		cp -L "$file" "$context/root$file"
	done
done
chmod 1777 "$context/root/data" # COPY keeps the modes of what is in a folder
cat >"$context/Dockerfile" <<'DOCKERFILE'
FROM scratch
COPY root/ /
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m CMD ["/slasha-init", "healthcheck"]
ENTRYPOINT ["/slasha-init", "--"]
CMD ["/guestbook", "serve", "--db", "/data/app.db"]
DOCKERFILE
docker build --quiet --tag "$1" "$context"
