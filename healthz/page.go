package healthz

import (
	"bytes"
	"fmt"
	"html"
	"net/http"
	"strings"
	"time"

	"github.com/slashacom/slasha-init/internal/text"
)

// pageHead is written by hand, without html/template: that package's use of
// reflection keeps the linker from dropping unused methods of every type in
// the binary. Every value on the page goes through html.EscapeString.
const pageHead = `<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="5">
<title>%s · slasha-init</title>
<style>
:root{color-scheme:light dark;--ok:#1a7f4b;--bad:#c0392b;--line:#8883}
body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin:0 0 .25rem}h1 b{color:var(--bad)}h1 b.ok{color:var(--ok)}
p{margin:.25rem 0 1.25rem}table{border-collapse:collapse;width:100%%}
th,td{text-align:left;padding:.4rem .75rem .4rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:500;white-space:nowrap;width:11rem;opacity:.75}td{overflow-wrap:anywhere}
footer{margin-top:1.5rem;font-size:.85rem;opacity:.7}
progress{width:100%%;height:.75rem}
</style></head><body>
`

func (h *Health) servePage(w http.ResponseWriter, _ *http.Request) {
	s := h.Status()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	_, _ = w.Write(page(s, h.now()))
}

func page(s Status, now time.Time) []byte {
	var b bytes.Buffer
	class, word := "", "not healthy"
	if s.Healthy {
		class, word = ` class="ok"`, "healthy"
	}
	if !s.Enabled {
		word = "running without backups"
	}
	fmt.Fprintf(&b, pageHead, word)
	fmt.Fprintf(&b, "<h1><b%s>●</b> %s</h1>\n<p>%s</p>\n", class, word, html.EscapeString(lead(s)))
	if s.Restore.State == RestoreRunning {
		fmt.Fprintf(&b, "<p><progress max=\"%d\" value=\"%d\"></progress><br>%s</p>\n",
			max(s.Restore.BytesTotal, 1), s.Restore.BytesDone, html.EscapeString(restoreText(s.Restore)))
	}
	b.WriteString("<table>\n")
	for _, row := range Rows(s, now) {
		fmt.Fprintf(&b, "<tr><th>%s</th><td>%s</td></tr>\n", html.EscapeString(row[0]), html.EscapeString(row[1]))
	}
	b.WriteString("</table>\n")
	fmt.Fprintf(&b, "<footer>slasha-init %s · refreshed every 5 s · the same as JSON at <a href=\"/healthz\">/healthz</a></footer></body></html>\n",
		html.EscapeString(s.Version))
	return b.Bytes()
}

func lead(s Status) string {
	switch {
	case s.HealthError != nil:
		return *s.HealthError
	case !s.Enabled:
		return "Neither --db-path nor --bucket is set: the app is supervised, and nothing is replicated."
	case s.Lease.State == "following":
		return "Another instance on this volume copies the commits of " + s.DBPath + " to the replica: " + s.Lease.Holder + "."
	default:
		return "Commits of " + s.DBPath + " are copied to the replica."
	}
}

// Rows returns what the status says as pairs of name and text, for the page and
// for the status command.
func Rows(s Status, now time.Time) [][2]string {
	rows := [][2]string{{"Phase", string(s.Phase)}}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, [2]string{name, value})
		}
	}
	if s.Enabled {
		add("Database", s.DBPath)
		add("Replica", s.Replica)
		add("Last synced", ago(s.LastSyncedAt, now, "nothing uploaded yet"))
		add("Last checked", ago(s.LastCheckedAt, now, "no answer yet"))
		add("Pending since", ago(s.PendingSince, now, "nothing is pending"))
		add("Transaction", transactions(s))
		if s.LastVerifiedAt != nil {
			add("Last verified", ago(s.LastVerifiedAt, now, ""))
		}
	}
	if s.Restore.State != RestoreNone {
		add("Restore", restoreText(s.Restore))
	}
	switch s.Lease.State {
	case "off":
	case "following":
		add("Leader", "another instance on this volume: "+s.Lease.Holder)
	case "waiting", "lost":
		add("Lease", fmt.Sprintf("%s, held by %s", s.Lease.State, s.Lease.Holder))
	default:
		add("Lease", fmt.Sprintf("%s, epoch %d", s.Lease.State, s.Lease.Epoch))
	}
	var procs []string
	for _, p := range s.Processes {
		procs = append(procs, fmt.Sprintf("%s (pid %d, since %s)", p.Type, p.PID, time.Time(p.StartedAt).UTC().Format(time.RFC3339)))
	}
	add("Processes", strings.Join(procs, ", "))
	return rows
}

func transactions(s Status) string {
	local, remote := "none", "none"
	if s.TXID != nil {
		local = *s.TXID
	}
	if s.ReplicaTXID != nil {
		remote = *s.ReplicaTXID
	}
	if local == remote {
		return local
	}
	return fmt.Sprintf("%s here, %s in the replica", local, remote)
}

func restoreText(r Restore) string {
	t := string(r.State)
	if r.Reason != nil {
		t += " (" + *r.Reason + ")"
	}
	switch r.State {
	case RestoreRunning:
		t += fmt.Sprintf(", %s of %s, %s/s", text.Bytes(r.BytesDone), text.Bytes(r.BytesTotal), text.Bytes(r.BytesPerSecond))
		if r.SecondsLeft != nil {
			t += fmt.Sprintf(", %s left", time.Duration(*r.SecondsLeft)*time.Second)
		}
	case RestoreDone:
		t += fmt.Sprintf(", %s in %.1f s", text.Bytes(r.BytesDone), r.TookSeconds)
	}
	if r.SetAside != nil {
		t += "; the database that was there is in " + *r.SetAside
	}
	return t
}

func ago(t *Time, now time.Time, none string) string {
	if t == nil {
		return none
	}
	at := time.Time(*t)
	return fmt.Sprintf("%s (%s ago)", at.UTC().Format(time.RFC3339), now.Sub(at).Round(time.Second))
}
