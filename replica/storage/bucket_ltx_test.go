package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/superfly/ltx"
)

// A stream that fails is not uploaded as far as it went, whatever its error says.
func TestAStreamThatFailsIsNotUploaded(t *testing.T) {
	for _, size := range []int{100, 6 << 20} {
		for _, cause := range []error{errors.New("disk"), io.ErrUnexpectedEOF, fmt.Errorf("disk: %w", io.EOF)} {
			var stored atomic.Int64
			ok := service("", nil)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if op := wants(r); op == "write" || op == "complete" {
					stored.Add(1)
				}
				ok.ServeHTTP(w, r)
			}))
			data := ltxBytes(t, 1, 1, time.UnixMilli(1), size)
			_, err := openAt(t, srv.URL).WriteLTXFile(t.Context(), 9, 1, 1, io.MultiReader(bytes.NewReader(data), iotest.ErrReader(cause)))
			if !errors.Is(err, cause) || stored.Load() != 0 {
				t.Errorf("%d bytes, then %q: %v, %d stored", size, cause, err, stored.Load())
			}
			srv.Close()
		}
	}
}

// The uploader takes the id for granted.
func TestAnUploadWithoutAnIDIsNoS3Service(t *testing.T) {
	srv := httptest.NewServer(service("begin", func() reply { return reply{200, nil, "<html><body>leaked</body></html>"} }))
	defer srv.Close()
	c := openAt(t, srv.URL)
	wantProblem(t, c, do(t, c, "begin"), ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint`)
}

func TestALevelThatIsNoList(t *testing.T) {
	for _, body := range []string{"", "<html><body>leaked</body></html>"} {
		srv := httptest.NewServer(service("list", func() reply { return reply{200, nil, body} }))
		c := openAt(t, srv.URL)
		wantProblem(t, c, do(t, c, "list"), ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint`)
		if generations, err := c.GenerationsV3(t.Context()); !errors.Is(err, errNotS3) {
			t.Errorf("%q: generations %v, %v", body, generations, err)
		}
		srv.Close()
	}
}

// An answer may only refuse what was to be deleted.
func TestARefusalOfAnotherObject(t *testing.T) {
	srv := httptest.NewServer(service("delete", func() reply {
		return reply{200, nil, "<DeleteResult><Error><Key>q/other</Key><Code>AccessDenied</Code></Error></DeleteResult>"}
	}))
	defer srv.Close()
	if err := do(t, openAt(t, srv.URL), "delete"); !errors.Is(err, errNotS3) {
		t.Errorf("%v", err)
	}
}

// The body of an error is read as far as an error of S3 is long.
func TestAnErrorHasALimit(t *testing.T) {
	var sent atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Amz-Bucket-Region", "us-east-1")
		w.WriteHeader(http.StatusBadRequest)
		for range 1 << 12 {
			n, err := io.WriteString(w, strings.Repeat("leaked ", 10_000))
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	c := openAt(t, srv.URL)
	wantProblem(t, c, do(t, c, "check"), ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service, or wants https://: check --endpoint (status 400)`)
	if n := sent.Load(); n > 32<<20 { // what fits into the buffers of the connection counts as sent
		t.Errorf("%d bytes were taken", n)
	}
}

// The files of a list keep the times of their uploads where the service has no others, and
// the list ends with its caller.
func TestDatesThatAreNotThere(t *testing.T) {
	list := `<ListBucketResult><Name>pics</Name><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated><Contents>` +
		`<Key>p/0000/0000000000000001-0000000000000001.ltx</Key><Size>1</Size><LastModified>2026-01-02T03:04:05Z</LastModified></Contents></ListBucketResult>`
	for name, head := range map[string]reply{
		"no metadata": {status: 200}, "no time": {200, map[string]string{"X-Amz-Meta-Litestream-Timestamp": "yesterday"}, ""},
		"denied": {status: 403}, "gone": {status: 404},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				service("delete one", func() reply { return head }).ServeHTTP(w, r)
				return
			}
			service("list", func() reply { return reply{200, nil, list} }).ServeHTTP(w, r)
		}))
		got := filesOf(t, openAt(t, srv.URL), 0, 0, true)
		if len(got) != 1 || got[0].CreatedAt.Format("2006-01-02 15:04:05") != "2026-01-02 03:04:05" {
			t.Errorf("%s: %+v", name, got)
		}
		srv.Close()
	}
}

var _ ltx.FileIterator = (*ltxFiles)(nil)
