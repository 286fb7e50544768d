package e2e

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/internal/testbed"
)

var benchHTTP = &http.Client{Transport: &http.Transport{MaxIdleConns: 64, MaxIdleConnsPerHost: 64}}

var (
	benchRounds = flag.Int("rounds", 3, "of BenchmarkRestore: how many times each contender runs")
	benchMB     = flag.Int("mb", 1024, "of BenchmarkRestore: size of the large database")
	benchTable  = flag.String("table", "", "of BenchmarkRestore: write the table to this file too")
	benchOnly   = flag.String("only", "", "of BenchmarkRestore: the one case to run")
)

// restoreCase is a replica to restore.
type restoreCase struct {
	name       string
	rows       int // of about 1 KiB, in the snapshot
	increments int // files after it, of a few rows each
	v3         bool
	alone      bool // only ours
}

// BenchmarkRestore compares restores in one run: ours with its verification on,
// litestream's, a plain parallel download of the same bytes, and cp, on loopback
// and through a proxy that is as far and as slow as a real bucket. See make
// bench-restore; as it runs each contender a few times in turn, b.N is not used.
func BenchmarkRestore(b *testing.B) {
	large := *benchMB << 10
	var table strings.Builder
	fmt.Fprintf(&table, "%s, medians of %d rounds in turn, %s\n\n", testbed.Machine(), *benchRounds, time.Now().UTC().Format(time.DateOnly))
	table.WriteString("| replica | over | | time, s | ours is faster by | peak memory, MiB |\n|---|---|---|---|---|---|\n")
	// Twice the size is for how our own memory grows. Of 20,000 files litestream
	// 0.5.18 opens every one at once, which here ends the S3 server.
	for _, c := range []restoreCase{
		{name: fmt.Sprintf("%d MB, 33 increments", *benchMB), rows: large, increments: 33, v3: true},
		{name: fmt.Sprintf("%d MB, 33 increments", 2**benchMB), rows: 2 * large, increments: 33, alone: true},
		{name: fmt.Sprintf("%d MB, 1,000 increments", *benchMB/4), rows: large / 4, increments: 1000},
		{name: "2,000 small increments", rows: 100, increments: 2000},
		{name: "20,000 small increments", rows: 100, increments: 20_000, alone: true},
	} {
		if *benchOnly == "" || strings.HasPrefix(c.name, *benchOnly) {
			c.run(b, &table)
		}
	}
	fmt.Print("\n" + table.String())
	if *benchTable != "" {
		if err := os.WriteFile(*benchTable, []byte(table.String()), 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// contender is one way to get the database back.
type contender struct {
	name string
	run  func(out string) (peak int64) // in KiB, 0 when not known, failed when there is no database
}

// failed says that a contender can't do it.
const failed = -1

func (c restoreCase) run(b *testing.B, table *strings.Builder) {
	srv := testbed.StartS3(b)
	source := c.fill(b, srv)
	for _, over := range []string{"loopback", "30 ms, 40 MB/s"} {
		url := srv.URL()
		if over != "loopback" {
			proxy := testbed.StartProxy(b, srv.Addr)
			proxy.Toxic("latency", "downstream", map[string]any{"latency": 30})
			proxy.Toxic("bandwidth", "downstream", map[string]any{"rate": 40_000})
			url = proxy.URL()
		}
		list := []contender{
			{"slasha-init", func(out string) int64 {
				return peak(b, srv.Settings(url, out), testbed.Released(b), "restore", "--output", out)
			}},
			{"litestream 0.5.18", func(out string) int64 {
				return peak(b, nil, testbed.Tool(b, "litestream"), "restore", "-config", c.config(b, srv, url, out, "apps/guestbook"), "-o", out, out)
			}},
			{"plain parallel download", func(out string) int64 { download(b, srv, url, out); return 0 }},
			{"cp and fsync", func(out string) int64 { return peak(b, nil, "dd", "if="+source, "of="+out, "bs=1M", "conv=fsync") }},
		}
		if c.v3 {
			list = slices.Insert(list, 2, contender{"litestream 0.3.14", func(out string) int64 {
				return peak(b, nil, testbed.Tool(b, "litestream3"), "restore", "-config", c.config(b, srv, url, out, "apps/v3"), "-o", out, out)
			}})
		}
		if c.alone {
			list = list[:1]
		}
		times, peaks := make([][]time.Duration, len(list)), make([]int64, len(list))
		for range *benchRounds {
			for i, l := range list {
				out := filepath.Join(b.TempDir(), "out.db")
				if peaks[i] == failed {
					continue
				}
				unix.Sync() // what others left to write is not to slow this one
				start := time.Now()
				if peak := l.run(out); peak == failed {
					peaks[i] = failed
				} else {
					peaks[i] = max(peaks[i], peak)
				}
				times[i] = append(times[i], time.Since(start))
				if err := os.Remove(out); err != nil && peaks[i] != failed {
					b.Fatal(err)
				}
			}
		}
		var ours time.Duration
		for i, l := range list {
			slices.Sort(times[i])
			median := times[i][len(times[i])/2]
			if i == 0 {
				ours = median
			}
			memory := "-"
			if peaks[i] > 0 {
				memory = fmt.Sprint(peaks[i] >> 10)
			}
			if peaks[i] == failed {
				if i == 0 {
					b.Fatal("ours failed")
				}
				line := fmt.Sprintf("| %s | %s | %s | fails | | |\n", c.name, over, l.name)
				fmt.Print(line)
				table.WriteString(line)
				continue
			}
			line := fmt.Sprintf("| %s | %s | %s | %.2f | %.2f | %s |\n", c.name, over, l.name, median.Seconds(), median.Seconds()/ours.Seconds(), memory)
			fmt.Print(line)
			table.WriteString(line)
		}
	}
	srv.Down()
}

// peak runs a command to its end and returns the most memory it had. The
// kernel's figure for a child that has ended would be that of this process, from
// between fork and exec, where that is more; so it is asked while it runs.
func peak(b *testing.B, env []string, name string, args ...string) (kib int64) {
	b.Helper()
	p := testbed.Start(b, env, name, args...)
	for {
		kib = max(kib, statusKiB(p.Cmd.Process.Pid, "VmHWM:"))
		select {
		case <-p.Done():
			if code := p.Wait(time.Second); code != 0 {
				fmt.Fprintf(os.Stderr, "%s: exit %d\n%s%s\n", name, code, p.Stdout, p.Stderr)
				return failed
			}
			return kib
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c restoreCase) config(b *testing.B, srv *testbed.S3, url, out, path string) string {
	b.Helper()
	name := filepath.Join(b.TempDir(), "litestream.yml")
	text := fmt.Sprintf("dbs:\n  - path: %s\n    replicas:\n      - type: s3\n        bucket: %s\n        path: %s\n        endpoint: %s\n"+
		"        region: %s\n        force-path-style: true\n        access-key-id: %s\n        secret-access-key: %s\n",
		out, srv.Bucket, path, url, srv.Region, testbed.UserKey, testbed.UserSecret)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return name
}

// row is about 1 KiB of what applications keep: words, and some that packs badly.
func row(random *rand.Rand) string {
	words := []string{"order", "customer", "paid", "2026-11-23", "shipped", "address", `"status":`, "pending", "note"}
	var s strings.Builder
	for s.Len() < 1000 {
		fmt.Fprintf(&s, "%s %x ", words[random.IntN(len(words))], random.Uint32())
	}
	return s.String()
}

// fill makes the replica, by Litestream, and returns the database that it holds.
func (c restoreCase) fill(b *testing.B, srv *testbed.S3) string {
	b.Helper()
	random := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // not for secrets
	path := filepath.Join(b.TempDir(), "source.db")
	exe := func(db *sql.DB, stmt string, args ...any) {
		b.Helper()
		if _, err := db.Exec(stmt, args...); err != nil {
			b.Fatal(err)
		}
	}
	open := func(driver string) *sql.DB {
		db, err := sql.Open(driver, path)
		if err != nil {
			b.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		return db
	}
	// In one go, and closed before Litestream opens it.
	source := open("sqlite3")
	exe(source, "PRAGMA journal_mode=wal")
	exe(source, "PRAGMA synchronous=off")
	exe(source, "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, body TEXT)")
	exe(source, "CREATE INDEX by_customer ON orders (customer)")
	for left := c.rows; left > 0; {
		exe(source, "BEGIN")
		for range min(left, 10_000) {
			exe(source, "INSERT INTO orders (customer, body) VALUES (?, ?)", random.IntN(1000), row(random))
			left--
		}
		exe(source, "COMMIT")
	}
	if err := source.Close(); err != nil {
		b.Fatal(err)
	}
	if c.v3 {
		c.fillV3(b, srv, path)
	}

	dir := b.TempDir()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	db := litestream.NewDB(path)
	db.MonitorInterval = 0
	db.CheckpointInterval = 0
	db.Replica = litestream.NewReplicaWithClient(db, file.NewReplicaClient(dir))
	db.Replica.MonitorEnabled = false
	if err := db.Open(); err != nil {
		b.Fatal(err)
	}
	source = open("sqlite")
	exe(source, "PRAGMA synchronous=off")
	for n := range c.increments + 1 {
		if n > 0 {
			exe(source, "UPDATE orders SET body = ? WHERE id = ?", row(random), 1+random.IntN(c.rows))
			exe(source, "INSERT INTO orders (customer, body) VALUES (?, ?)", random.IntN(1000), row(random))
		}
		if err := db.SyncAndWait(context.Background()); err != nil {
			b.Fatal(err)
		}
		if n == 0 {
			if _, err := db.Snapshot(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := source.Close(); err != nil {
		b.Fatal(err)
	}
	if err := db.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	// Into the bucket, which is a folder, under the names that they have there.
	for level := range 10 {
		from, to := filepath.Join(dir, "ltx", fmt.Sprint(level)), filepath.Join(srv.Dir, srv.Bucket, "apps/guestbook", fmt.Sprintf("%04x", level))
		if _, err := os.Stat(from); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			b.Fatal(err)
		}
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
	return path
}

// fillV3 makes a replica of the same database by litestream 0.3.14.
func (c restoreCase) fillV3(b *testing.B, srv *testbed.S3, path string) {
	b.Helper()
	p := testbed.Start(b, nil, testbed.Tool(b, "litestream3"), "replicate", "-config", c.config(b, srv, srv.URL(), path, "apps/v3"))
	testbed.WaitOutput(p, p.Stdout, "snapshot", 5*time.Minute, testbed.Contains("snapshot written"))
	testbed.WaitOutput(p, p.Stdout, "WAL segment", time.Minute, testbed.Contains("wal segment written"))
	p.Kill()
	if err := os.RemoveAll(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"-litestream")); err != nil {
		b.Fatal(err)
	}
}

// download reads all files of the replica side by side into one, without looking
// at them: what no restore can beat.
func download(b *testing.B, srv *testbed.S3, url, out string) {
	b.Helper()
	client := s3.New(s3.Options{
		BaseEndpoint: aws.String(url), Region: srv.Region, UsePathStyle: true,
		Credentials:                credentials.NewStaticCredentialsProvider(testbed.UserKey, testbed.UserSecret, ""),
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		HTTPClient:                 benchHTTP,
	})
	f, err := os.Create(out)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	g, ctx := errgroup.WithContext(b.Context())
	g.SetLimit(64)
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{Bucket: &srv.Bucket, Prefix: aws.String("apps/guestbook/")})
	var end int64
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			b.Fatal(err)
		}
		for _, o := range page.Contents {
			if strings.Contains(*o.Key, "/0000/0000000000000001-") {
				continue // the snapshot has it
			}
			const piece = 8 << 20
			for at := int64(0); at < *o.Size; at += piece {
				at, to, last := at, end+at, min(at+piece, *o.Size)-1
				g.Go(func() error {
					res, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &srv.Bucket, Key: o.Key, Range: aws.String(fmt.Sprintf("bytes=%d-%d", at, last))})
					if err != nil {
						return err
					}
					defer func() { _ = res.Body.Close() }()
					_, err = io.Copy(io.NewOffsetWriter(f, to), res.Body)
					return err
				})
			}
			end += *o.Size
		}
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
}
