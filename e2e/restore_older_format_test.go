package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// replicateV3 runs litestream 0.3.14 over a database while the app writes, as
// the platform's script does today, and stops it when all is uploaded.
func replicateV3(t *testing.T, s3 *testbed.S3, db string, count int) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "litestream.yml")
	text := fmt.Sprintf("dbs:\n  - path: %s\n    replicas:\n      - type: s3\n        bucket: %s\n        path: apps/guestbook\n        endpoint: %s\n"+
		"        region: %s\n        sync-interval: 50ms\n        force-path-style: true\n        access-key-id: %s\n        secret-access-key: %s\n",
		db, s3.Bucket, s3.URL(), s3.Region, testbed.UserKey, testbed.UserSecret)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := testbed.Start(t, nil, testbed.Tool(t, "litestream3"), "replicate", "-config", config)
	said := func() string { return p.Stdout.String() + p.Stderr.String() }
	testbed.Eventually(t, 20*time.Second, func() error {
		if !strings.Contains(said(), "replicating to") {
			return fmt.Errorf("it does not replicate: %s", said())
		}
		return nil
	})
	// Slower than it syncs, so that there are many WAL segments.
	w := worker(t, db, "--every", "60ms", "--count", fmt.Sprint(count))
	testbed.MustRun(t, nil, 30*time.Second, w[0], w[1:]...)
	// Its shutdown can hang for good (0.3.14, a signal while it writes a segment),
	// so it is killed, once its own restore gives every row.
	testbed.Eventually(t, 30*time.Second, func() error {
		out := filepath.Join(t.TempDir(), "restored.db")
		code, _, stderr := testbed.Run(t, nil, 20*time.Second, testbed.Tool(t, "litestream3"), "restore", "-config", config, "-o", out, db)
		if code != 0 {
			return fmt.Errorf("its restore: %s", stderr)
		}
		if got, want := len(testbed.Entries(t, out)), len(testbed.Entries(t, db)); got != want {
			return fmt.Errorf("%d of %d entries uploaded: %s", got, want, said())
		}
		return nil
	})
	p.Kill()
}

// A replica that litestream 0.3 wrote, in several generations, is restored and
// carried on in the same prefix; the time before the upgrade stays within reach.
func TestReplicaOfTheOlderFormat(t *testing.T) {
	t.Parallel()
	s3, vol := testbed.StartS3(t), newVolume(t)
	db := vol.db(t)
	replicateV3(t, s3, db, 10)
	// What it knows is lost, so it begins another generation.
	if err := os.RemoveAll(filepath.Join(filepath.Dir(db), ".app.db-litestream")); err != nil {
		t.Fatal(err)
	}
	replicateV3(t, s3, db, 5)
	generations, err := filepath.Glob(filepath.Join(s3.Dir, s3.Bucket, "apps/guestbook/generations/*"))
	if err != nil || len(generations) != 2 {
		t.Fatalf("generations: %v, %v", generations, err)
	}
	time.Sleep(1100 * time.Millisecond) // it stamps with seconds
	before := time.Now().UTC().Format(time.RFC3339Nano)
	time.Sleep(20 * time.Millisecond)

	settings := s3.Settings(s3.URL(), db)
	for _, want := range []int{18, 21} {
		vol.lose(t)
		db = vol.db(t)
		c := testbed.StartContainer(t, settings, worker(t, db, "--every", "0", "--count", "3")...)
		if code := c.Wait(30 * time.Second); code != 0 {
			t.Fatalf("exit %d", code)
		}
		if n := len(testbed.Entries(t, db)); n != want {
			t.Fatalf("%d entries, not %d", n, want)
		}
	}
	for name, c := range map[string]struct {
		flags []string
		want  int
	}{"the newest": {nil, 21}, "before the upgrade": {[]string{"--timestamp", before}, 15}} {
		out := filepath.Join(t.TempDir(), "restored.db")
		testbed.MustRun(t, settings, 20*time.Second, testbed.SlashaInit(t), append([]string{"restore", "--output", out}, c.flags...)...)
		if n := len(testbed.Entries(t, out)); n != c.want {
			t.Errorf("%s: %d entries, not %d", name, n, c.want)
		}
	}
}
