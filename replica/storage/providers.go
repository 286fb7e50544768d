package storage

import "github.com/benbjohnson/litestream"

// preset is what a provider needs otherwise than Amazon S3. TestProviderPresets compares
// it with what Litestream itself does there.
type preset struct {
	// pathStyle puts the bucket into the path and not in front of the host.
	pathStyle bool
	// partSize and concurrency are those of large uploads, in bytes and in parts at the
	// same time; 0 leaves the uploader's own, 5 MiB and 5.
	partSize    int64
	concurrency int
	// contentMD5 adds that header to a DELETE of several objects. S3 demanded it before it
	// had the checksums of today, and some services still do.
	contentMD5 bool
	// consistent is the header by which Tigris answers from the bucket's home region, so
	// that a list has what was just written.
	consistent bool
	// bareEncoding leaves the header Accept-Encoding out of the request: Google's front ends
	// rewrite it, and then the signature over it does not match.
	bareEncoding bool
}

// presetOf returns what the service at an endpoint needs. Payloads are signed as the SDK
// does by itself: all over HTTP, and over HTTPS all but uploads, whose bodies TLS protects.
// (SignPayload of Litestream's client means the same.)
//
// Sources: Litestream 0.5.18, docs/PROVIDER_COMPATIBILITY.md ("Provider Detection" and the
// issues that it names), s3.NewReplicaClientFromURL and its middlewareOption.
func presetOf(e Endpoint) preset {
	p := preset{pathStyle: e.URL != "", contentMD5: true}
	switch {
	case litestream.IsTigrisEndpoint(e.URL):
		p.partSize, p.concurrency, p.contentMD5, p.consistent = 16<<20, 2, false, true
	case litestream.IsCloudflareR2Endpoint(e.URL):
		p.concurrency = 2
	case litestream.IsGoogleCloudStorageEndpoint(e.URL):
		p.bareEncoding = true
	}
	return p
}
