package testbed

import (
	"crypto/md5" //nolint:gosec // an ETag
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Heedless is an S3 server in memory that ignores the conditions of a request, as
// some services do. It asks for no key, and knows no more than what an app of these
// tests needs.
type Heedless struct {
	*httptest.Server
	mu      sync.Mutex
	objects map[string]object // by bucket/key
}

type object struct {
	data []byte
	at   time.Time
	tag  string
	meta http.Header
}

// StartHeedless starts one.
func StartHeedless(t testing.TB) *Heedless {
	h := &Heedless{objects: make(map[string]object)}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

// Settings are those of an app whose replica is there.
func (h *Heedless) Settings(dbPath string) []string {
	return []string{
		"SLASHA_DB_PATH=" + dbPath, "SLASHA_BUCKET=heedless", "SLASHA_ENDPOINT=" + h.URL, "SLASHA_PATH_PREFIX=app",
		"SLASHA_ACCESS_KEY_ID=made-up-id", "SLASHA_SECRET_ACCESS_KEY=made-up-secret",
		"SLASHA_HEALTH_ADDR=127.0.0.1:0",
	}
}

func (h *Heedless) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := strings.TrimPrefix(r.URL.Path, "/")
	switch {
	case r.Method == http.MethodPut:
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		sum := md5.Sum(data) //nolint:gosec // an ETag
		meta := make(http.Header)
		for key, value := range r.Header {
			if strings.HasPrefix(key, "X-Amz-Meta-") {
				meta[key] = value
			}
		}
		o := object{data, time.Now(), `"` + hex.EncodeToString(sum[:]) + `"`, meta}
		h.objects[name] = o
		w.Header().Set("ETag", o.tag)
	case r.Method == http.MethodPost && r.URL.Query().Has("delete"):
		var asked struct {
			Object []struct{ Key string }
		}
		if err := xml.NewDecoder(r.Body).Decode(&asked); err != nil {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		for _, o := range asked.Object {
			delete(h.objects, name+"/"+o.Key)
		}
		fmt.Fprint(w, `<DeleteResult/>`)
	case r.Method == http.MethodGet && r.URL.Query().Get("list-type") == "2":
		h.list(w, strings.TrimSuffix(name, "/"), r.URL.Query().Get("prefix"), r.URL.Query().Get("start-after"))
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		o, ok := h.objects[name]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `<Error><Code>NoSuchKey</Code></Error>`)
			return
		}
		for key, value := range o.meta {
			w.Header()[key] = value
		}
		w.Header().Set("ETag", o.tag)
		http.ServeContent(w, &http.Request{Method: r.Method, Header: http.Header{"Range": r.Header["Range"]}}, "", o.at, strings.NewReader(string(o.data)))
	default:
		w.WriteHeader(http.StatusNotImplemented)
		fmt.Fprint(w, `<Error><Code>NotImplemented</Code></Error>`)
	}
}

func (h *Heedless) list(w http.ResponseWriter, bucket, prefix, after string) {
	type content struct {
		Key          string
		LastModified string
		ETag         string
		Size         int
	}
	var answer struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		Name        string
		IsTruncated bool
		Contents    []content
	}
	answer.Name = bucket
	for name, o := range h.objects {
		key := strings.TrimPrefix(name, bucket+"/")
		if strings.HasPrefix(key, prefix) && key > after {
			answer.Contents = append(answer.Contents, content{key, o.at.UTC().Format(time.RFC3339Nano), o.tag, len(o.data)})
		}
	}
	slices.SortFunc(answer.Contents, func(a, b content) int { return strings.Compare(a.Key, b.Key) })
	_ = xml.NewEncoder(w).Encode(answer)
}
