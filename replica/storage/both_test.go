package storage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/s3"
	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// Litestream's own client for S3 is the reference for ours: a replica that one of the two
// wrote must be the same to both. These tests keep a new Litestream from drifting away.

type formats interface {
	litestream.ReplicaClient
	litestream.ReplicaClientV3
}

var (
	_ formats = (*Client)(nil)
	_ formats = (*s3.ReplicaClient)(nil)
)

// theirs is Litestream's client as its own parser of addresses makes it.
func theirs(t testing.TB, endpoint, bucket, prefix, key, secret string) *s3.ReplicaClient {
	t.Helper()
	made, err := s3.NewReplicaClientFromURL("s3", bucket, prefix, map[string][]string{"endpoint": {endpoint}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := made.(*s3.ReplicaClient)
	if !ok {
		t.Fatalf("%T", made)
	}
	c.AccessKeyID, c.SecretAccessKey, c.Region = key, secret, "us-east-1"
	return c
}

// ltxBytes is a file of a size whose header has a time.
func ltxBytes(t testing.TB, minTXID, maxTXID ltx.TXID, at time.Time, size int) []byte {
	t.Helper()
	h := ltx.Header{Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: 4096, Commit: 1, MinTXID: minTXID, MaxTXID: maxTXID, Timestamp: at.UnixMilli()}
	b, err := h.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for i := range size {
		b = append(b, byte(i*i>>8^i))
	}
	return b
}

// upload is one file of the replica that both clients write.
type upload struct {
	level    int
	min, max ltx.TXID
	size     int
	stream   bool // cannot seek
}

var uploadsOfBoth = []upload{
	{0, 1, 1, 200, false},
	{0, 2, 2, 0, false},
	{0, 3, 3, 300, true},
	{0, 4, 9, 5<<20 - ltx.HeaderSize - 1, false}, // the largest that is no large upload
	{0, 10, 10, 5<<20 - ltx.HeaderSize, false},   // as long as a part
	{0, 11, 11, 5<<20 - ltx.HeaderSize, true},
	{1, 1, 3, 11 << 20, false},
	{1, 4, 4, 100, true},
	{9, 1, 1, 11 << 20, true},
	{9, 1, 10, 6 << 20, false},
}

func (u upload) data(t testing.TB) []byte {
	return ltxBytes(t, u.min, u.max, time.UnixMilli(1_700_000_000_123+int64(u.max)*1000), u.size)
}

func (u upload) write(t testing.TB, c litestream.ReplicaClient) *ltx.FileInfo {
	t.Helper()
	var r io.Reader = bytes.NewReader(u.data(t))
	if u.stream {
		r = io.MultiReader(r)
	}
	info, err := c.WriteLTXFile(t.Context(), u.level, u.min, u.max, r)
	if err != nil {
		t.Fatalf("%+v: %v", u, err)
	}
	return info
}

func TestBothClients(t *testing.T) {
	server := testbed.StartS3(t)
	prefixes := []string{"written/ours", "written/theirs"}
	open := func(prefix string) [2]formats {
		return [2]formats{
			openAt(t, server.URL(), func(cfg *Config) {
				cfg.Bucket, cfg.Prefix, cfg.AccessKeyID, cfg.SecretAccessKey = server.Bucket, prefix, testbed.UserKey, testbed.UserSecret
			}),
			theirs(t, server.URL(), server.Bucket, prefix, testbed.UserKey, testbed.UserSecret),
		}
	}
	var clients [2][2]formats // by prefix, and by who reads
	for i, prefix := range prefixes {
		clients[i] = open(prefix)
		if clients[i][0].Type() != clients[i][1].Type() {
			t.Errorf("the type is %q, and Litestream's %q", clients[i][0].Type(), clients[i][1].Type())
		}
	}
	for _, u := range uploadsOfBoth {
		ours, theirs := u.write(t, clients[0][0]), u.write(t, clients[1][1])
		if *ours != *theirs || ours.Size != int64(len(u.data(t))) {
			t.Errorf("%+v: we say %+v, and Litestream's client %+v", u, ours, theirs)
		}
	}

	t.Run("objects", func(t *testing.T) {
		ours, theirs := objects(t, clients[0][0], prefixes[0]), objects(t, clients[0][0], prefixes[1])
		if len(ours) != len(uploadsOfBoth) {
			t.Errorf("%d objects of ours", len(ours))
		}
		for key, want := range theirs {
			if got := ours[key]; got != want {
				t.Errorf("%s:\n%s\nand of Litestream's client:\n%s", key, got, want)
			}
			if !strings.Contains(want, "X-Amz-Meta-Litestream-Timestamp: 2023-11-14T22:") {
				t.Errorf("%s has no time: %s", key, want)
			}
		}
	})

	t.Run("lists", func(t *testing.T) {
		for i := range prefixes {
			for _, level := range []int{0, 1, 2, 9} {
				for _, seek := range []ltx.TXID{0, 2, 5, 100} {
					for _, dated := range []bool{false, true} {
						ours, theirs := filesOf(t, clients[i][0], level, seek, dated), filesOf(t, clients[i][1], level, seek, dated)
						if !reflect.DeepEqual(ours, theirs) {
							t.Errorf("%s, level %d from %d, dated %t: %+v\nand by Litestream's client: %+v", prefixes[i], level, seek, dated, ours, theirs)
						}
						for _, f := range ours {
							if old := f.CreatedAt.Year() == 2023; old != dated {
								t.Errorf("dated %t: %v", dated, f.CreatedAt)
							}
						}
					}
				}
			}
		}
		if n := len(filesOf(t, clients[0][0], 0, 2, false)); n != 5 {
			t.Errorf("%d files of level 0 from 2", n)
		}
	})

	t.Run("reads", func(t *testing.T) {
		for i := range prefixes {
			for _, u := range uploadsOfBoth {
				data := u.data(t)
				for _, part := range [][2]int64{{0, 0}, {0, 100}, {50, 0}, {20, 60}, {int64(len(data)) - 10, 10}, {int64(len(data)) - 10, 100}} {
					for who, c := range clients[i] {
						rc, err := c.OpenLTXFile(t.Context(), u.level, u.min, u.max, part[0], part[1])
						if err != nil {
							t.Fatal(err)
						}
						got, err := io.ReadAll(rc)
						want := data[part[0]:]
						if part[1] > 0 {
							want = want[:min(part[1], int64(len(want)))]
						}
						if err := errors.Join(err, rc.Close()); err != nil || !bytes.Equal(got, want) {
							t.Errorf("%s, %+v, part %v, client %d: %d bytes, want %d, %v", prefixes[i], u, part, who, len(got), len(want), err)
						}
					}
				}
			}
			for who, c := range clients[i] {
				if _, err := c.OpenLTXFile(t.Context(), 0, 77, 77, 0, 0); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("client %d: a file that does not exist: %v", who, err)
				}
			}
		}
	})

	t.Run("more than one page", func(t *testing.T) {
		dir := filepath.Join(server.Dir, server.Bucket, prefixes[0], "0003")
		for i := range 2100 {
			writeFile(t, dir, ltx.FormatFilename(ltx.TXID(i+1), ltx.TXID(i+1)), []byte("x"))
		}
		writeFile(t, dir, "note.txt", nil)
		for _, seek := range []ltx.TXID{0, 1500} {
			ours, theirs := filesOf(t, clients[0][0], 3, seek, false), filesOf(t, clients[0][1], 3, seek, false)
			if !reflect.DeepEqual(ours, theirs) || len(ours) != 2100-max(0, int(seek)-1) {
				t.Errorf("from %d: %d files, and %d by Litestream's client", seek, len(ours), len(theirs))
			}
		}
	})

	t.Run("deletes", func(t *testing.T) {
		for i := range prefixes { // each client what the other wrote
			infos := filesOf(t, clients[i][i], 0, 0, false)
			gone := []*ltx.FileInfo{infos[0], infos[1], {Level: 0, MinTXID: 77, MaxTXID: 77}}
			if err := clients[i][1-i].DeleteLTXFiles(t.Context(), gone); err != nil {
				t.Error(err)
			}
			if left := filesOf(t, clients[i][i], 0, 0, false); !reflect.DeepEqual(left, infos[2:]) {
				t.Errorf("%s: %d files are left", prefixes[i], len(left))
			}
		}
		all := filesOf(t, clients[0][0], 3, 0, false) // in three requests
		if err := clients[0][0].DeleteLTXFiles(t.Context(), all); err != nil {
			t.Error(err)
		}
		if left := filesOf(t, clients[0][1], 3, 0, false); len(left) != 0 {
			t.Errorf("%d files are left", len(left))
		}
	})
}

// objects returns what a server shows of each object of a prefix: headers and content.
func objects(t *testing.T, c formats, prefix string) map[string]string {
	t.Helper()
	client, ok := c.(*Client)
	if !ok {
		t.Fatalf("%T", c)
	}
	b, ok := client.place.(*bucket)
	if !ok {
		t.Fatalf("%T", client.place)
	}
	if err := client.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := b.s3.ListObjectsV2(t.Context(), &awss3.ListObjectsV2Input{Bucket: b.name(), Prefix: aws.String(prefix + "/")})
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, o := range out.Contents {
		var text strings.Builder
		var header http.Header
		next := b.transport.next
		b.transport.next = roundTripper(func(r *http.Request) (*http.Response, error) {
			res, err := next.RoundTrip(r)
			if err == nil {
				header = res.Header.Clone()
			}
			return res, err
		})
		_, err := b.s3.HeadObject(t.Context(), &awss3.HeadObjectInput{Bucket: b.name(), Key: o.Key})
		b.transport.next = next
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range slices.Sorted(maps.Keys(header)) {
			if !slices.Contains([]string{"Date", "Last-Modified", "X-Amz-Request-Id", "X-Amz-Id-2"}, name) {
				fmt.Fprintf(&text, "%s: %s\n", name, strings.Join(header[name], ", "))
			}
		}
		got, err := b.s3.GetObject(t.Context(), &awss3.GetObjectInput{Bucket: b.name(), Key: o.Key})
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, got.Body); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "%x", sum.Sum(nil))
		all[strings.TrimPrefix(*o.Key, prefix)] = text.String()
	}
	return all
}

func filesOf(t *testing.T, c litestream.ReplicaClient, level int, seek ltx.TXID, dated bool) []*ltx.FileInfo {
	t.Helper()
	itr, err := c.LTXFiles(t.Context(), level, seek, dated)
	if err != nil {
		t.Fatal(err)
	}
	all, err := ltx.SliceFileIterator(itr)
	if err := errors.Join(err, itr.Close()); err != nil {
		t.Fatal(err)
	}
	return all
}

// pack is what Litestream 0.3 made of a file.
func pack(t testing.TB, data []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := lz4.NewWriter(&packed)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

func writeFile(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

const (
	older = "0123456789abcdef"
	other = "fedcba9876543210"
)

// olderReplica writes the files of two generations of 0.3 with write, and some that are
// none of it. It returns what is in each.
func olderReplica(t *testing.T, write func(name string, data []byte)) map[string][]byte {
	t.Helper()
	content := map[string][]byte{
		litestream.SnapshotPathV3("", older, 0):             bytes.Repeat([]byte("snapshot 0 "), 100_000),
		litestream.SnapshotPathV3("", older, 17):            []byte("snapshot 17"),
		litestream.WALSegmentPathV3("", older, 0, 0):        bytes.Repeat([]byte("segment "), 1000),
		litestream.WALSegmentPathV3("", older, 0, 8000):     []byte("the next"),
		litestream.WALSegmentPathV3("", older, 16, 0):       []byte("a later one"),
		litestream.SnapshotPathV3("", other, 1):             []byte("of another generation"),
		litestream.WALSegmentPathV3("", other, 1, 1<<32+20): nil,
	}
	for name, data := range content {
		write(name, pack(t, data))
	}
	for _, stray := range []string{
		"generations/not-a-generation/snapshots/00000000.snapshot.lz4", "generations/" + older + "/snapshots/readme.txt",
		"generations/" + older + "/wal/readme.txt", "generations/readme.txt",
	} {
		write(stray, []byte("x"))
	}
	return content
}

// readOlder returns all that a client lists of a replica of 0.3, and reads it. Of times it leaves out the
// zone, which Litestream's client for folders sets to the machine's.
func readOlder(t *testing.T, c formats, content map[string][]byte) string {
	t.Helper()
	ctx := t.Context()
	var says strings.Builder
	generations, err := c.GenerationsV3(ctx)
	fmt.Fprintln(&says, generations, err)
	for _, g := range append(generations, "0000000000000000") {
		snapshots, err := c.SnapshotsV3(ctx, g)
		for i := range snapshots {
			snapshots[i].CreatedAt = snapshots[i].CreatedAt.UTC()
		}
		fmt.Fprintln(&says, snapshots, err)
		segments, err := c.WALSegmentsV3(ctx, g)
		for i := range segments {
			segments[i].CreatedAt = segments[i].CreatedAt.UTC()
		}
		fmt.Fprintln(&says, segments, err)
		read := func(name string, open func() (io.ReadCloser, error)) {
			rc, err := open()
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(rc)
			if err := errors.Join(err, rc.Close()); err != nil || !bytes.Equal(got, content[name]) {
				t.Errorf("%s: %d bytes, want %d, %v", name, len(got), len(content[name]), err)
			}
		}
		for _, s := range snapshots {
			read(litestream.SnapshotPathV3("", g, s.Index), func() (io.ReadCloser, error) { return c.OpenSnapshotV3(ctx, g, s.Index) })
		}
		for _, s := range segments {
			read(litestream.WALSegmentPathV3("", g, s.Index, s.Offset), func() (io.ReadCloser, error) { return c.OpenWALSegmentV3(ctx, g, s.Index, s.Offset) })
		}
		if _, err := c.OpenSnapshotV3(ctx, g, 99); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a snapshot that does not exist: %v", err)
		}
		if _, err := c.OpenWALSegmentV3(ctx, g, 99, 0); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a segment that does not exist: %v", err)
		}
	}
	return says.String()
}

func TestBothClientsReadOlderReplicas(t *testing.T) {
	server := testbed.StartS3(t)
	ours := openAt(t, server.URL(), func(cfg *Config) {
		cfg.Bucket, cfg.Prefix, cfg.AccessKeyID, cfg.SecretAccessKey = server.Bucket, "older", testbed.UserKey, testbed.UserSecret
	})
	if err := ours.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, ok := ours.place.(*bucket)
	if !ok {
		t.Fatalf("%T", ours.place)
	}
	content := olderReplica(t, func(name string, data []byte) {
		if _, err := b.s3.PutObject(t.Context(), &awss3.PutObjectInput{Bucket: b.name(), Key: b.key(name), Body: bytes.NewReader(data)}); err != nil {
			t.Fatal(err)
		}
	})
	reference := theirs(t, server.URL(), server.Bucket, "older", testbed.UserKey, testbed.UserSecret)
	if got, want := readOlder(t, ours, content), readOlder(t, reference, content); got != want || !strings.HasPrefix(got, "["+older+" "+other+"] <nil>\n") {
		t.Errorf("ours:\n%s\nLitestream's:\n%s", got, want)
	}
	empty := openAt(t, server.URL(), func(cfg *Config) {
		cfg.Bucket, cfg.Prefix, cfg.AccessKeyID, cfg.SecretAccessKey = server.Bucket, "none", testbed.UserKey, testbed.UserSecret
	})
	if generations, err := empty.GenerationsV3(t.Context()); len(generations) != 0 || err != nil {
		t.Errorf("an empty replica has %v, %v", generations, err)
	}
}

// varying are the headers that are never the same twice, or that name the client.
var varying = []string{"Amz-Sdk-Invocation-Id", "Amz-Sdk-Request", "X-Amz-Date", "User-Agent"}

var signature = regexp.MustCompile(`Credential=.*aws4_request|Signature=[0-9a-f]+`)

// What goes over the line is the same too, as far as it matters to a service.
func TestBothClientsSendTheSame(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		var mu sync.Mutex
		var seen []string
		answers := service("list", func() reply {
			return reply{200, nil, `<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>pics</Name><KeyCount>1</KeyCount>` +
				`<IsTruncated>false</IsTruncated><Contents><Key>p/0000/0000000000000001-0000000000000001.ltx</Key><Size>1</Size>` +
				`<LastModified>2026-01-02T03:04:05Z</LastModified></Contents></ListBucketResult>`}
		})
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if wants(r) != "check" {
				var text strings.Builder
				fmt.Fprintf(&text, "%s %s, %d bytes, %v, %x\n", r.Method, r.URL.RequestURI(), r.ContentLength, r.TransferEncoding, sha256.Sum256(body))
				for _, name := range slices.Sorted(maps.Keys(r.Header)) {
					if !slices.Contains(varying, name) {
						fmt.Fprintf(&text, "  %s: %s\n", name, signature.ReplaceAllString(strings.Join(r.Header[name], ", "), ""))
					}
				}
				mu.Lock()
				seen = append(seen, text.String())
				mu.Unlock()
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			answers.ServeHTTP(w, r)
		}))
		if scheme == "https" {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		t.Cleanup(srv.Close)

		ours, theirs := openAt(t, srv.URL), theirs(t, srv.URL, "pics", "p", testKey, testSecret)
		theirs.SkipVerify = true
		if scheme == "https" {
			trusted := x509.NewCertPool()
			trusted.AddCert(srv.Certificate())
			ours.place.(*bucket).transport.next.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: trusted}
		}
		read := func(rc io.ReadCloser, err error) error {
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, rc)
			return errors.Join(err, rc.Close())
		}
		list := func(itr ltx.FileIterator, err error) error {
			if err != nil {
				return err
			}
			_, err = ltx.SliceFileIterator(itr)
			return errors.Join(err, itr.Close())
		}
		write := func(u upload) func(context.Context, formats) error {
			return func(_ context.Context, c formats) error {
				u.write(t, c)
				return nil
			}
		}
		for name, use := range map[string]func(ctx context.Context, c formats) error{
			"small":         write(upload{0, 1, 1, 500, false}),
			"small stream":  write(upload{0, 1, 1, 500, true}),
			"medium":        write(upload{1, 1, 2, 3 << 20, false}),
			"large":         write(upload{9, 1, 1, 11 << 20, false}),
			"large stream":  write(upload{9, 1, 1, 11 << 20, true}),
			"read":          func(ctx context.Context, c formats) error { return read(c.OpenLTXFile(ctx, 0, 1, 1, 0, 0)) },
			"read a part":   func(ctx context.Context, c formats) error { return read(c.OpenLTXFile(ctx, 9, 1, 1, 7, 70)) },
			"list":          func(ctx context.Context, c formats) error { return list(c.LTXFiles(ctx, 0, 0, false)) },
			"list from":     func(ctx context.Context, c formats) error { return list(c.LTXFiles(ctx, 0, 9, false)) },
			"list dated":    func(ctx context.Context, c formats) error { return list(c.LTXFiles(ctx, 0, 0, true)) },
			"delete":        func(ctx context.Context, c formats) error { return c.DeleteLTXFiles(ctx, twoFiles) },
			"generations":   func(ctx context.Context, c formats) error { _, err := c.GenerationsV3(ctx); return err },
			"snapshots":     func(ctx context.Context, c formats) error { _, err := c.SnapshotsV3(ctx, older); return err },
			"segments":      func(ctx context.Context, c formats) error { _, err := c.WALSegmentsV3(ctx, older); return err },
			"open snapshot": func(ctx context.Context, c formats) error { _, err := c.OpenSnapshotV3(ctx, older, 3); return err },
			"open segment":  func(ctx context.Context, c formats) error { _, err := c.OpenWALSegmentV3(ctx, older, 3, 5); return err },
		} {
			var sent [2][]string
			for i, c := range []formats{ours, theirs} {
				seen = nil
				if err := use(t.Context(), c); err != nil && !strings.HasPrefix(name, "read") { // the answers are no files
					t.Fatalf("%s, %s: %v", scheme, name, err)
				}
				slices.SortFunc(seen, cmp.Compare[string]) // parts go up in any order
				sent[i] = seen
			}
			if len(sent[0]) == 0 || !slices.Equal(sent[0], sent[1]) {
				t.Errorf("%s, %s: we send\n%s\nand Litestream's client\n%s", scheme, name, strings.Join(sent[0], ""), strings.Join(sent[1], ""))
			}
			if (strings.HasPrefix(name, "small") || name == "medium") && len(sent[0]) != 1 {
				t.Errorf("%s, %s: %d requests", scheme, name, len(sent[0]))
			}
		}
	}
}
