package e2e

import (
	"database/sql"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

var (
	replicateTable = flag.String("replicate-table", "", "of BenchmarkReplicate: write the table to this file too")
	replicateScale = flag.Float64("scale", 1, "of BenchmarkReplicate: length of each part")
)

// farBucket stands in front of an S3 server, as far away as a real one, and notes
// when each upload began and when it was acknowledged.
type farBucket struct {
	*httptest.Server
	mu    sync.Mutex
	puts  []upload
	parts int // of snapshots that have begun to be uploaded
	whole int // snapshots
}

type upload struct {
	began, acked time.Time
	of           string // path and query
}

// ofCommits reports whether an upload is of what was committed just now, as opposed to
// leases, snapshots and compactions.
func (u upload) ofCommits() bool {
	return (strings.Contains(u.of, "/0000/") || strings.Contains(u.of, "/wal/")) && !strings.Contains(u.of, "partNumber")
}

// roundTrip is how far away the bucket is.
const roundTrip = 30 * time.Millisecond

func newFarBucket(b *testing.B, srv *testbed.S3) *farBucket {
	b.Helper()
	to, err := url.Parse(srv.URL())
	if err != nil {
		b.Fatal(err)
	}
	far := &farBucket{}
	forward := httputil.NewSingleHostReverseProxy(to) // leaves the Host that was signed
	far.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		<-time.After(roundTrip / 2)
		rec := &statusWriter{ResponseWriter: w}
		forward.ServeHTTP(rec, r)
		far.mu.Lock()
		defer far.mu.Unlock()
		if r.Method == http.MethodPut && rec.status == http.StatusOK {
			far.puts = append(far.puts, upload{began, time.Now().Add(roundTrip / 2), r.URL.RequestURI()})
		}
		if strings.Contains(r.URL.Path, "/0009/") { // whole, or the last step of one in parts
			query := r.URL.Query()
			switch {
			case r.Method == http.MethodPut && query.Has("partNumber"):
				far.parts++
			case r.Method == http.MethodPut, r.Method == http.MethodPost && query.Has("uploadId"):
				far.whole++
			}
		}
	}))
	b.Cleanup(far.Close)
	return far
}

// statusWriter answers after the other half of the round trip.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	<-time.After(roundTrip / 2)
	w.ResponseWriter.WriteHeader(status)
}

func (f *farBucket) snapshots() (parts, whole int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.parts, f.whole
}

func (f *farBucket) uploads() []upload {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(slices.Values(f.puts), func(a, b upload) int { return a.began.Compare(b.began) })
}

// durable is when a commit was in the bucket: when the first upload that began
// after it was acknowledged.
func durable(puts []upload, commit time.Time) (time.Time, bool) {
	puts = slices.DeleteFunc(slices.Clone(puts), func(u upload) bool { return !u.ofCommits() })
	i, _ := slices.BinarySearchFunc(puts, commit, func(u upload, t time.Time) int { return u.began.Compare(t) })
	if i == len(puts) {
		return time.Time{}, false
	}
	return puts[i].acked, true
}

// lags waits until the last of some commits is in the bucket, and returns how long
// each took to get there, in order.
func (f *farBucket) lags(b *testing.B, commits []time.Time) (lags []time.Duration) {
	b.Helper()
	testbed.Eventually(b, 30*time.Second, func() error {
		if _, ok := durable(f.uploads(), commits[len(commits)-1]); !ok {
			return fmt.Errorf("the last commit is not uploaded")
		}
		return nil
	})
	puts := f.uploads()
	for _, c := range commits {
		at, _ := durable(puts, c)
		lags = append(lags, at.Sub(c))
	}
	slices.Sort(lags)
	return lags
}

// BenchmarkReplicate compares replication in one run: ours with litestream's, on
// a bucket that is 30 ms away. See make bench-replicate; it runs each contender
// once, and b.N is not used.
func BenchmarkReplicate(b *testing.B) {
	var table strings.Builder
	fmt.Fprintf(&table, "%s, %s\n\n| | slasha-init | litestream 0.5.18 | litestream 0.3.14 |\n|---|---|---|---|\n", testbed.Machine(), time.Now().UTC().Format(time.DateOnly))
	alone := saturate(b, openBench(b, filepath.Join(b.TempDir(), "app.db")))
	rows := make(map[string][]string)
	var order []string
	for _, name := range []string{"slasha-init", "litestream", "litestream3"} {
		for _, f := range append(replicateWith(b, name, alone), snapshotWith(b, name)...) {
			if !slices.Contains(order, f[0]) {
				order = append(order, f[0])
			}
			rows[f[0]] = append(rows[f[0]], f[1])
		}
	}
	for _, name := range order {
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", name, rows[name][0], rows[name][1], rows[name][2])
	}
	fmt.Printf("\n%s\nalone, the app makes %s\n", table.String(), alone)
	fmt.Fprintf(&table, "\nWithout any replication the app makes %s.\n", alone)
	if *replicateTable != "" {
		if err := os.WriteFile(*replicateTable, []byte(table.String()), 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

func openBench(b *testing.B, path string) *sql.DB {
	b.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.Fatal(err)
	}
	db, err := sql.Open("sqlite3", "file:"+path+"?_journal_mode=WAL&_synchronous=NORMAL&_busy_timeout=10000&_txlock=immediate")
	if err != nil {
		b.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	b.Cleanup(func() { _ = db.Close() })
	if _, err := db.Exec("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body TEXT)"); err != nil {
		b.Fatal(err)
	}
	return db
}

func commit(b *testing.B, db *sql.DB) time.Time {
	b.Helper()
	if _, err := db.Exec("INSERT INTO t (body) VALUES (?)", "a small transaction, of about a hundred bytes, as apps make them all day long, and nothing more"); err != nil {
		b.Fatal(err)
	}
	return time.Now()
}

// replicateWith measures one contender, and returns figures by name.
func replicateWith(b *testing.B, name string, alone throughput) (figures [][2]string) {
	srv := testbed.StartS3(b)
	far := newFarBucket(b, srv)
	path := filepath.Join(b.TempDir(), "data", "app.db")
	db := openBench(b, path)
	commit(b, db)
	var p *testbed.Process
	if name == "slasha-init" {
		p = testbed.Start(b, srv.Settings(far.URL, path), testbed.Released(b), "--", "sleep", "100000")
	} else {
		p = testbed.Start(b, nil, testbed.Tool(b, name), "replicate", "-config", restoreCase{}.config(b, srv, far.URL, path, "apps/guestbook"))
	}
	testbed.Eventually(b, 30*time.Second, func() error {
		if len(far.uploads()) == 0 {
			return fmt.Errorf("nothing is uploaded")
		}
		return nil
	})
	figure := func(what, format string, args ...any) {
		figures = append(figures, [2]string{what, fmt.Sprintf(format, args...)})
	}
	seconds := func(n float64) time.Duration { return time.Duration(n * *replicateScale * float64(time.Second)) }
	random := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // not for secrets

	// The first uploads and compactions are over.
	<-time.After(seconds(45))
	part := func(what string, length time.Duration, pause func() time.Duration) {
		before := len(far.uploads())
		var commits []time.Time
		began := time.Now()
		for time.Since(began) < length {
			<-time.After(pause())
			commits = append(commits, commit(b, db))
		}
		lags := far.lags(b, commits)
		puts := far.uploads()
		figure(what+": commit to durable, median", "%d ms", lags[len(lags)/2].Milliseconds())
		figure(what+": commit to durable, 99th of 100", "%d ms", lags[len(lags)*99/100].Milliseconds())
		figure(what+": PUTs a minute", "%.0f", float64(len(puts)-before)/time.Since(began).Minutes())
	}
	part("single commits, 1 to 4 s apart", seconds(90), func() time.Duration { return time.Second + time.Duration(random.Int64N(int64(3*time.Second))) })
	part("20 commits a second", seconds(30), func() time.Duration { return 50 * time.Millisecond })

	<-time.After(seconds(5))
	cpu := cpuTime(b, p.Cmd.Process.Pid)
	idle := seconds(60)
	<-time.After(idle)
	figure("idle: CPU, ms in a second", "%.2f", float64((cpuTime(b, p.Cmd.Process.Pid)-cpu).Milliseconds())/idle.Seconds())
	figure("idle: resident memory", "%d MiB", statusKiB(p.Cmd.Process.Pid, "VmRSS:")>>10)

	got := saturate(b, db)
	figure("as fast as it can: commits a second", "%.0f (%.2f of alone)", got.rate, got.rate/alone.rate)
	figure("as fast as it can: longest commit", "%d ms", got.longest.Milliseconds())
	p.Kill()
	srv.Down()
	return figures
}

// snapshotWith measures what becomes of commits while a snapshot of a large database
// is uploaded, and the memory that takes. It is made at the next full minute.
func snapshotWith(b *testing.B, name string) (figures [][2]string) {
	lag, memory := "snapshot of 1 GiB under way: commit to durable, 99th of 100", "snapshot of 1 GiB under way: most resident memory"
	if name == "litestream3" {
		return [][2]string{{lag, "-"}, {memory, "-"}}
	}
	srv := testbed.StartS3(b)
	far := newFarBucket(b, srv)
	path := filepath.Join(b.TempDir(), "data", "app.db")
	db := openBench(b, path)
	if _, err := db.Exec("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < ?) INSERT INTO t (body) SELECT hex(randomblob(500)) FROM c", int(float64(1<<20)**replicateScale)); err != nil {
		b.Fatal(err)
	}
	var p *testbed.Process
	if name == "slasha-init" {
		p = testbed.Start(b, append(srv.Settings(far.URL, path), "SLASHA_SNAPSHOT_INTERVAL=1m"), testbed.Released(b), "--", "sleep", "100000")
	} else {
		config := restoreCase{}.config(b, srv, far.URL, path, "apps/guestbook")
		text, err := os.ReadFile(config)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(config, append([]byte("snapshot:\n  interval: 1m\n"), text...), 0o600); err != nil {
			b.Fatal(err)
		}
		p = testbed.Start(b, nil, testbed.Tool(b, name), "replicate", "-config", config)
	}
	var commits []time.Time
	until := func(what string, ok func() bool) {
		deadline := time.Now().Add(4 * time.Minute)
		for !ok() {
			if time.Now().After(deadline) {
				b.Fatalf("%s: %s: not within 4 minutes", name, what)
			}
			<-time.After(50 * time.Millisecond)
			commits = append(commits, commit(b, db))
		}
	}
	first := commit(b, db)
	until("the first upload", func() bool { _, ok := durable(far.uploads(), first); return ok })
	// litestream makes one at the start, while the first upload is under way.
	parts, whole := far.snapshots()
	until("no snapshot", func() bool {
		p, w := far.snapshots()
		still := p == parts && (p == 0 || w > 0)
		parts, whole = p, w
		return still
	})
	until("a snapshot", func() bool { p, _ := far.snapshots(); return p > parts })
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.Cmd.Process.Pid), []byte("5"), 0); err != nil { // the peak counts from here on
		b.Fatal(err)
	}
	commits = nil
	until("the snapshot's end", func() bool { _, w := far.snapshots(); return w > whole && len(commits) > 0 })
	peak := statusKiB(p.Cmd.Process.Pid, "VmHWM:")
	lags := far.lags(b, commits)
	p.Kill()
	srv.Down()
	return [][2]string{
		{lag, fmt.Sprintf("%d ms (of %d)", lags[len(lags)*99/100].Milliseconds(), len(lags))},
		{memory, fmt.Sprintf("%d MiB", peak>>10)},
	}
}

// throughput is what an app gets done.
type throughput struct {
	rate    float64 // commits in a second
	longest time.Duration
}

func (t throughput) String() string {
	return fmt.Sprintf("%.0f commits a second, the longest of %d ms", t.rate, t.longest.Milliseconds())
}

func saturate(b *testing.B, db *sql.DB) (t throughput) {
	b.Helper()
	began, last := time.Now(), time.Now()
	n := 0
	for length := time.Duration(10 * *replicateScale * float64(time.Second)); time.Since(began) < length; n++ {
		now := commit(b, db)
		t.longest = max(t.longest, now.Sub(last))
		last = now
	}
	t.rate = float64(n) / time.Since(began).Seconds()
	return t
}

// cpuTime is what a process has used; see proc_pid_stat(5), whose ticks are of
// 10 ms.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	var user, system int64
	if _, err := fmt.Sscan(testbed.Stat(pid, 14)+" "+testbed.Stat(pid, 15), &user, &system); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// statusKiB is a line of proc_pid_status(5), or 0 when there is no such process.
func statusKiB(pid int, line string) (kib int64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(text), line)
	_, _ = fmt.Sscan(rest, &kib)
	return kib
}
