#!/usr/bin/env bash
# The main job, shown: an app writes under slasha-init, its volume is lost, and
# the next start has everything back. The "bucket" is a local folder. Everything
# happens in a temporary folder and on loopback, and is gone afterwards.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/bin
work=$(mktemp -d)
pid=

cleanup() {
	if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
		kill -KILL "$pid" 2>/dev/null || true
	fi
	rm -rf "$work"
}
trap cleanup EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; cat "$work"/*.log >&2 || true; exit 1; }

# What a platform would set.
export SLASHA_DB_PATH=$work/volume/app.db
export SLASHA_ENDPOINT=file://$work/replica
export SLASHA_HEALTH_ADDR=127.0.0.1:0

# Starts the guestbook under slasha-init; sets app and health to the addresses.
start() {
	mkdir -p "$work/volume"
	"$bin/slasha-init" -- "$bin/guestbook" serve --db "$SLASHA_DB_PATH" --addr 127.0.0.1:0 \
		>"$work/app.log" 2>"$work/init.log" &
	pid=$!
	app= health=
	for _ in $(seq 200); do
		app=$(sed -n 's/^listening on //p' "$work/app.log")
		health=$(sed -n 's/.*msg="health page" addr=\([^ ]*\).*/\1/p' "$work/init.log")
		if [ -n "$app" ] && [ -n "$health" ]; then return; fi
		kill -0 "$pid" 2>/dev/null || die "slasha-init ended"
		sleep 0.05
	done
	die "the app did not start"
}

synced() { # waits until everything that was written is in the replica
	for _ in $(seq 200); do
		if curl -sf "http://$health/healthz" >"$work/health.json" &&
			grep -q '"pending_since": null' "$work/health.json" &&
			! grep -q '"last_synced_at": null' "$work/health.json"; then return; fi
		sleep 0.05
	done
	die "not synced"
}

say "1. The app starts on an empty volume, and people sign the guestbook."
start
for name in Ada Grace Edsger Barbara Ken; do
	curl -sf -d "name=$name" -d "text=was here" "http://$app/entries" >/dev/null
done
before=$(curl -sf "http://$app/count")
echo "   $before entries in $SLASHA_DB_PATH"

say "2. slasha-init has streamed them to the replica; this is what its poller sees:"
synced
grep -E '"(phase|healthy|last_synced_at|pending_since|txid|replica)"' "$work/health.json"

say "3. The container is stopped, and its volume is lost."
kill -TERM "$pid"
wait "$pid" || die "exit code $?"
pid=
rm -rf "$work/volume"
echo "   slasha-init exited with 0; $work/volume is gone"

say "4. The next start finds no database, and restores it before the app starts."
start
after=$(curl -sf "http://$app/count")
sed -n 's/.*msg=\(decided\|restored\)/   \1/p' "$work/init.log"
echo "   $after entries are back"
[ "$after" = "$before" ] || die "$before entries before, $after after"

say "5. The app goes on."
curl -sf -d "name=Margaret" -d "text=too" "http://$app/entries" >/dev/null
echo "   $(curl -sf "http://$app/count") entries"
kill -TERM "$pid"
wait "$pid" || die "exit code $?"
pid=
say "Done: nothing was lost."
