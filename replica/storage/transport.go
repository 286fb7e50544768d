package storage

import (
	"bytes"
	"encoding/xml"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A bucket is not trusted: it may be another server, broken, or hostile. These are the
// limits on what it may answer, and where each is enforced:
//
//	silence                 stall.go, for each operation; keysClient here, for keys
//	tries of a request      patient and hasty, in bucket.go
//	redirects               fewRedirects, here
//	headers                 net/http, with its default of 10 MiB
//	an error's body         maxErrorBody, here
//	an error's words        oneLine in explain.go and shortCode in answers.go
//	the bucket's region     validRegion, here
//	a 200 that is not S3    page in bucket.go, for lists; bucket_ltx.go, for uploads
//	what was not deleted    deleteLTX in bucket_ltx.go
//	an object of our own    maxOwn in own.go
//	an LTX file's length    the size in the list; reader in restore/fetch/reader.go
//	an LTX file's index     measure and find in restore/fetch/layout.go
//
// There is no limit yet on how long one page of a list is, on how many pages and files a list
// has, and on how long the files of Litestream 0.3 are when they are unpacked.

const (
	// mostConnections is how many connections are kept for the next request: as many as a
	// restore reads from at once. With the two that Go keeps by default nearly every file
	// of a plan would need a new connection.
	mostConnections = 128

	// maxErrorBody is more than any S3 error document is long, in bytes. The rest of an
	// answer is not read.
	maxErrorBody = 64 << 10
)

// transport makes all requests of a client, over one pool of connections.
type transport struct {
	next http.RoundTripper

	mu     sync.Mutex
	region string
}

// newTransport speaks HTTP/1.1 alone: over HTTP/2 all reads would share one connection,
// and its rate. It waits for an answer as long as the request's context allows: a service
// may need its time to put a large upload together.
func newTransport() *transport {
	return &transport{next: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConns:          mostConnections,
		MaxIdleConnsPerHost:   mostConnections,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second, // for the service to refuse a large upload before it is sent
	}}
}

// client returns an HTTP client above the transport, whose requests may take as long as
// their contexts allow.
func (t *transport) client() *http.Client {
	return &http.Client{Transport: t, CheckRedirect: fewRedirects}
}

// keysClient returns one for requests to services that give keys. They need a limit of
// their own: the SDK makes one such request at a time, and does not end it with the
// operation that waits for it, so a silent service would stop all requests for good.
func (t *transport) keysClient() *http.Client {
	c := t.client()
	c.Timeout = stallAfter
	return c
}

// RoundTrip makes one request. It limits the body of an error, and keeps the region that
// the error names: servers put the bucket's region into a header (x-amz-bucket-region,
// with a redirect) or into the error's XML (Region, with AuthorizationHeaderMalformed),
// and the SDK's errors drop both.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := t.next.RoundTrip(req)
	if err != nil || res.StatusCode < 300 {
		return res, err
	}
	// An answer that breaks off still has a status, and reading on fails again.
	head, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	rest := io.LimitReader(res.Body, maxErrorBody-int64(len(head)))
	res.Body = errorBody{io.MultiReader(bytes.NewReader(head), rest), res.Body}
	region := res.Header.Get("X-Amz-Bucket-Region")
	if region == "" {
		region = regionInError(head)
	}
	if validRegion(region) {
		t.mu.Lock()
		t.region = region
		t.mu.Unlock()
	}
	return res, nil
}

type errorBody struct {
	io.Reader
	io.Closer
}

// bucketRegion returns the last region that an error named, or "".
func (t *transport) bucketRegion() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.region
}

// regionInError returns the Region element of an S3 error document, or "".
func regionInError(doc []byte) string {
	var e struct {
		XMLName xml.Name `xml:"Error"`
		Region  string   `xml:"Region"`
	}
	if xml.Unmarshal(doc, &e) != nil {
		return ""
	}
	return strings.TrimSpace(e.Region)
}

// validRegion keeps what a server says out of our signatures and logs unless it looks
// like a region.
func validRegion(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

// fewRedirects follows three redirects of the kinds that leave a request as it is (307 and
// 308), as the SDK's own HTTP client also follows. The others would turn an upload into a
// download. What is not followed becomes an error: see redirect in answers.go.
func fewRedirects(req *http.Request, via []*http.Request) error {
	switch status := req.Response.StatusCode; {
	case status != http.StatusTemporaryRedirect && status != http.StatusPermanentRedirect, len(via) > 3:
		return http.ErrUseLastResponse
	}
	if req.URL.Host != via[0].URL.Host {
		// net/http drops Authorization by itself, and does not know this one. The SDK's own
		// client drops it too.
		req.Header.Del("X-Amz-Security-Token")
	}
	return nil
}
