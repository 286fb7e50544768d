package storage

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/benbjohnson/litestream/s3"
	"github.com/superfly/ltx"
)

// What each provider needs is Litestream's knowledge: the presets are those that its own
// client gets, so a new Litestream that knows more fails this test.
func TestProviderPresets(t *testing.T) {
	IsolateEnvironment(true) // which Litestream's parser reads
	for in, want := range map[string]preset{
		"":                                     {contentMD5: true},
		"s3.us-east-1.amazonaws.com":           {contentMD5: true},
		"s3.dualstack.eu-west-1.amazonaws.com": {pathStyle: true, contentMD5: true},
		"a.r2.cloudflarestorage.com":           {pathStyle: true, contentMD5: true, concurrency: 2},
		"fra1.digitaloceanspaces.com":          {pathStyle: true, contentMD5: true},
		"s3.us-west-004.backblazeb2.com":       {pathStyle: true, contentMD5: true},
		"s3.filebase.com":                      {pathStyle: true, contentMD5: true},
		"s3.fr-par.scw.cloud":                  {pathStyle: true, contentMD5: true},
		"fsn1.your-objectstorage.com":          {pathStyle: true, contentMD5: true},
		"x.supabase.co":                        {pathStyle: true, contentMD5: true},
		"s3.eu-central-1.wasabisys.com":        {pathStyle: true, contentMD5: true},
		"br-example-123456.storage.c-6.us-east-2.aws.neon.tech": {pathStyle: true, contentMD5: true},
		"storage.googleapis.com":                                {pathStyle: true, contentMD5: true, bareEncoding: true},
		"http://127.0.0.1:9000":                                 {pathStyle: true, contentMD5: true},
		"minio.example.com:9000":                                {pathStyle: true, contentMD5: true},
		"fly.storage.tigris.dev":                                {pathStyle: true, concurrency: 2, partSize: 16 << 20, consistent: true},
		"t3.storage.dev":                                        {pathStyle: true, concurrency: 2, partSize: 16 << 20, consistent: true},
	} {
		e, err := ParseEndpoint(in, "my.bucket")
		if err != nil {
			t.Fatal(err)
		}
		got := presetOf(e)
		if got != want {
			t.Errorf("%q gets %+v, want %+v", in, got, want)
		}
		query := url.Values{}
		if e.URL != "" {
			query.Set("endpoint", e.URL)
		}
		made, err := s3.NewReplicaClientFromURL("s3", "my-bucket", "p", query, nil)
		if err != nil {
			t.Fatal(err)
		}
		theirs, ok := made.(*s3.ReplicaClient)
		if !ok {
			t.Fatalf("%T", made)
		}
		// The header and the encoding are no fields of Litestream's client: see below.
		ours := preset{theirs.ForcePathStyle, theirs.PartSize, theirs.Concurrency, theirs.RequireContentMD5, got.consistent, got.bareEncoding}
		if got != ours {
			t.Errorf("%q gets %+v, and Litestream's client %+v", in, got, ours)
		}
		// What no preset of ours sets.
		if !theirs.SignPayload || !theirs.SignAcceptEncoding || theirs.SkipVerify || theirs.PutObjectContentMD5 || theirs.StorageClass != "" ||
			theirs.MetadataConcurrency != 0 || theirs.SSECustomerKey != "" || theirs.SSEKMSKeyID != "" {
			t.Errorf("%q: Litestream's client sets more: %+v", in, theirs)
		}
	}
	// A setting that Litestream adds is to be looked at.
	known := []string{
		"AccessKeyID", "SecretAccessKey", "Region", "Bucket", "Path", "Endpoint", "ForcePathStyle", "SkipVerify", "SignPayload",
		"SignAcceptEncoding", "RequireContentMD5", "PutObjectContentMD5", "StorageClass", "PartSize", "Concurrency", "MetadataConcurrency",
		"SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5", "SSEKMSKeyID",
	}
	for f := range reflect.TypeFor[s3.ReplicaClient]().Fields() {
		if f.IsExported() && !slices.Contains(known, f.Name) {
			t.Errorf("Litestream's client has a new setting: %s", f.Name)
		}
	}
	if s3.MetadataKeyTimestamp != timestampKey || s3.MaxKeys != mostDeletes || s3.DefaultMetadataConcurrency != mostHeads || s3.DefaultRegion != defaultRegion {
		t.Error("Litestream's constants have changed")
	}
}

// One request each that no test against a local server makes: to Amazon, Tigris, Google.
func TestRequestsToProviders(t *testing.T) {
	for endpoint, want := range map[string]struct {
		url        string
		encoding   bool
		consistent string
		md5        bool
		plain      bool // the body is sent as it is, without the SDK's checksum
	}{
		"":                       {"https://pics.s3.us-east-1.amazonaws.com/p/0000/", true, "", true, false},
		"storage.googleapis.com": {"https://storage.googleapis.com/pics/p/0000/", false, "", true, true},
		"fly.storage.tigris.dev": {"https://fly.storage.tigris.dev/pics/p/0000/", true, "true", false, true},
		"minio.example.com:9000": {"https://minio.example.com:9000/pics/p/0000/", true, "", true, true},
	} {
		t.Run(endpoint, func(t *testing.T) {
			c := openAt(t, endpoint)
			seen := make(map[string]*http.Request)
			record(t, c, service("", nil), func(r *http.Request, _ []byte) { seen[wants(r)] = r })
			if err := do(t, c, "read"); err != nil {
				t.Fatal(err)
			}
			if err := do(t, c, "write"); err != nil {
				t.Fatal(err)
			}
			if err := do(t, c, "delete"); err != nil {
				t.Fatal(err)
			}
			for _, op := range []string{"check", "read", "write", "delete"} {
				r := seen[op]
				if r == nil {
					t.Fatalf("no %s", op)
				}
				signed := strings.Contains(r.Header.Get("Authorization"), "accept-encoding")
				if (r.Header.Get("Accept-Encoding") != "") != want.encoding || signed != want.encoding {
					t.Errorf("%s: Accept-Encoding %q, signed %t", op, r.Header.Get("Accept-Encoding"), signed)
				}
				if got := r.Header.Get("X-Tigris-Consistent"); got != want.consistent {
					t.Errorf("%s: X-Tigris-Consistent %q", op, got)
				}
			}
			write := seen["write"]
			if got := write.URL.Scheme + "://" + write.URL.Host + write.URL.Path; !strings.HasPrefix(got, want.url) {
				t.Errorf("writes to %s", got)
			}
			if plain := write.Header.Get("Content-Encoding") == ""; plain != want.plain {
				t.Errorf("Content-Encoding %q", write.Header.Get("Content-Encoding"))
			}
			if write.ContentLength < ltx.HeaderSize || len(write.TransferEncoding) != 0 {
				t.Errorf("a write of unknown size: %d, %v", write.ContentLength, write.TransferEncoding)
			}
			if md5 := seen["delete"].Header.Get("Content-Md5") != ""; md5 != want.md5 {
				t.Errorf("delete with MD5: %t", md5)
			}
		})
	}
}

// record makes a handler answer a client's requests, without a network.
func record(t testing.TB, c *Client, h http.Handler, see func(r *http.Request, body []byte)) {
	t.Helper()
	b, ok := c.place.(*bucket)
	if !ok {
		t.Fatalf("%T", c.place)
	}
	b.transport.next = roundTripper(func(r *http.Request) (*http.Response, error) {
		var sent []byte
		if r.Body != nil {
			var err error
			if sent, err = io.ReadAll(r.Body); err != nil {
				return nil, err
			}
			if err := r.Body.Close(); err != nil {
				return nil, err
			}
		}
		see(r, sent)
		again := r.Clone(r.Context())
		again.Body = io.NopCloser(bytes.NewReader(sent))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, again)
		res := w.Result()
		res.Request = r
		return res, nil
	})
}
