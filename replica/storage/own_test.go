package storage

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// conditions tests what a lease needs of any place.
func conditions(t *testing.T, c *Client) {
	ctx := t.Context()
	if _, err := c.ReadOwn(ctx, "note"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	if _, err := c.WriteOwn(ctx, "note", []byte("x"), `"00000000000000000000000000000000"`); !errors.Is(err, os.ErrExist) {
		t.Errorf("in the place of what is not there: %v", err)
	}
	first, err := c.WriteOwn(ctx, "note", []byte("first"), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteOwn(ctx, "note", []byte("x"), ""); !errors.Is(err, os.ErrExist) {
		t.Errorf("where there is one: %v", err)
	}
	second, err := c.WriteOwn(ctx, "note", []byte("second"), first)
	if err != nil || second == first {
		t.Fatalf("in the place of the first: %q, %v", second, err)
	}
	if _, err := c.WriteOwn(ctx, "note", []byte("x"), first); !errors.Is(err, os.ErrExist) {
		t.Errorf("in the place of what it was: %v", err)
	}
	own, err := c.ReadOwn(ctx, "note")
	if err != nil || string(own.Data) != "second" || own.Tag != second || own.Age < 0 || own.Age > time.Minute {
		t.Errorf("%q, tag %s, age %v, %v; want the second, %s", own.Data, own.Tag, own.Age, err, second)
	}
	if empty, err := c.Empty(ctx); err != nil || !empty {
		t.Errorf("what is ours counts as a backup: %t, %v", empty, err)
	}
	// Of many at the same time one succeeds.
	for round := range 10 {
		own, err := c.ReadOwn(ctx, "note")
		if err != nil {
			t.Fatal(err)
		}
		var won atomic.Int64
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				switch _, err := c.WriteOwn(ctx, "note", []byte{byte(round), byte(i)}, own.Tag); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, os.ErrExist):
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := won.Load(); n != 1 {
			t.Errorf("%d of 8 have replaced the same", n)
		}
	}
}

func TestConditionsInAFolder(t *testing.T) {
	c, err := Open(Config{Endpoint: Endpoint{Dir: filepath.Join(t.TempDir(), "replica")}, Prefix: "p"})
	if err != nil {
		t.Fatal(err)
	}
	conditions(t, c)
}

func TestConditionsInABucket(t *testing.T) {
	s3 := testbed.StartS3(t)
	conditions(t, openAt(t, s3.URL(), func(cfg *Config) {
		cfg.Bucket, cfg.Prefix = s3.Bucket, "conditions"
		cfg.AccessKeyID, cfg.SecretAccessKey = testbed.UserKey, testbed.UserSecret
	}))
}

// Any other service, by hand: SLASHA_TEST_S3 is like http://id:secret@host:9000/bucket.
// docs/single-writer.md has the results.
func TestConditionsOfAService(t *testing.T) {
	where := os.Getenv("SLASHA_TEST_S3")
	if where == "" {
		t.Skip("SLASHA_TEST_S3 names no service")
	}
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	bucket := strings.Trim(u.Path, "/")
	endpoint, err := ParseEndpoint(u.Scheme+"://"+u.Host, bucket)
	if err != nil {
		t.Fatal(err)
	}
	secret, _ := u.User.Password()
	c, err := Open(Config{
		Endpoint: endpoint, Bucket: bucket, Prefix: fmt.Sprintf("conditions-%d", time.Now().UnixNano()),
		AccessKeyID: u.User.Username(), SecretAccessKey: secret,
	})
	if err != nil {
		t.Fatal(err)
	}
	conditions(t, c)
}
