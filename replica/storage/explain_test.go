package storage

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/superfly/ltx"
)

// These tests go through the real clients, over HTTP, to a server that answers as
// S3 services do when something is wrong.

const (
	testKey    = "AKIATESTKEY000000000"
	testSecret = "made-up-secret-33333333333333333333333333"
)

// TestMain keeps the machine's own settings for AWS and for proxies out.
func TestMain(m *testing.M) {
	IsolateEnvironment(true)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		_ = os.Unsetenv(name)
	}
	// The tests mostly wait for the clients to try again; fuzzing does not.
	if !slices.ContainsFunc(os.Args, func(arg string) bool { return strings.HasPrefix(arg, "-test.fuzz") }) {
		_ = flag.Set("test.parallel", "16")
	}
	os.Exit(m.Run())
}

// reply is one answer of a server.
type reply struct {
	status int
	header map[string]string
	body   string
}

// s3Error is an error as S3 gives it. Amazon repeats the key and the signature in
// SignatureDoesNotMatch; here all errors do, so that any leak shows.
func s3Error(status int, code, message string, more ...string) reply {
	return reply{status, map[string]string{"Content-Type": "application/xml", "X-Amz-Request-Id": "4442587FB7D0A2F9"},
		`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + "<Error><Code>" + code + "</Code><Message>" + message + "</Message>" +
			"<AWSAccessKeyId>" + testKey + "</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256 leaked</StringToSign>" +
			strings.Join(more, "") + "<RequestId>4442587FB7D0A2F9</RequestId><HostId>leaked</HostId></Error>"}
}

func page(status int, more ...string) reply {
	return reply{status, map[string]string{"Content-Type": "text/html"},
		"<!DOCTYPE html>\n<html><head><title>" + http.StatusText(status) + "</title></head><body><center><h1>leaked</h1></center><hr>" +
			strings.Join(more, "") + "</body></html>"}
}

const emptyList = `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">` +
	`<Name>pics</Name><Prefix>p/</Prefix><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>`

// wants names what a request wants, in our own words.
func wants(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodGet && q.Get("max-keys") == "1":
		return "check"
	case r.Method == http.MethodGet && q.Has("list-type"):
		return "list"
	case r.Method == http.MethodGet:
		return "read"
	case r.Method == http.MethodPut && q.Has("partNumber"):
		return "part"
	case r.Method == http.MethodPut:
		return "write"
	case r.Method == http.MethodPost && q.Has("delete"):
		return "delete"
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "begin"
	case r.Method == http.MethodPost:
		return "complete"
	case r.Method == http.MethodDelete && q.Has("uploadId"):
		return "abort"
	}
	return "delete one"
}

// service is a server where all goes well but one kind of request.
func service(bad string, answer func() reply) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		op := wants(r)
		a := reply{status: 200, body: emptyList}
		switch op {
		case "begin":
			a.body = "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
		case "complete":
			a.body = `<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>`
		case "delete":
			a.body = "<DeleteResult></DeleteResult>"
		case "part", "write":
			a = reply{status: 200, header: map[string]string{"Etag": `"x"`}}
		case "delete one", "abort":
			a = reply{status: 204}
		}
		if op == bad {
			a = answer()
		}
		for k, v := range a.header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	})
}

func openAt(t testing.TB, endpoint string, change ...func(*Config)) *Client {
	t.Helper()
	e, err := ParseEndpoint(endpoint, "")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Endpoint: e, Bucket: "pics", Prefix: "p", AccessKeyID: testKey, SecretAccessKey: testSecret}
	for _, f := range change {
		f(&cfg)
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ltxFile is as much of a file as an upload looks at.
func ltxFile(t testing.TB, size int) io.Reader {
	t.Helper()
	h := ltx.Header{Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: 4096, Commit: 1, MinTXID: 1, MaxTXID: 1, Timestamp: 1}
	b, err := h.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(append(b, make([]byte, size)...))
}

var twoFiles = []*ltx.FileInfo{{MinTXID: 1, MaxTXID: 1}, {MinTXID: 2, MaxTXID: 2}}

// do makes a client run into a bad answer to the operation.
func do(t testing.TB, c *Client, op string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	switch op {
	case "check":
		return c.Check(ctx)
	case "list":
		itr, err := c.LTXFiles(ctx, 0, 0, false)
		if err != nil {
			return err
		}
		for itr.Next() {
			t.Error("a file is listed")
		}
		return itr.Close()
	case "read":
		rc, err := c.OpenLTXFile(ctx, 0, 1, 1, 0, 0)
		if err != nil {
			return err
		}
		_, err = io.ReadAll(rc)
		return errors.Join(err, rc.Close())
	case "write":
		_, err := c.WriteLTXFile(ctx, 0, 1, 1, ltxFile(t, 100))
		return err
	case "begin", "part", "complete":
		_, err := c.WriteLTXFile(ctx, 9, 1, 1, ltxFile(t, 6<<20))
		return err
	case "delete", "delete one":
		return c.DeleteLTXFiles(ctx, twoFiles)
	}
	t.Fatalf("no operation %q", op)
	return nil
}

var aTime = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d UTC`)

// wantProblem compares the whole sentence, with HOST for the server and TIME for
// moments.
func wantProblem(t *testing.T, c *Client, err error, class Class, temporary bool, sentence string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	p := c.Explain(err)
	got := aTime.ReplaceAllString(strings.ReplaceAll(p.Sentence, explainer{cfg: c.cfg}.host(), "HOST"), "TIME")
	if p.Class != class || p.Temporary != temporary || got != sentence {
		t.Errorf("got  %s, temporary %v: %s\nwant %s, temporary %v: %s\nfrom %v", p.Class, p.Temporary, got, class, temporary, sentence, err)
	}
	if flaw := flawOf(p.Sentence); flaw != "" {
		t.Errorf("the sentence %s: %q", flaw, p.Sentence)
	}
}

// flawOf says what is wrong with a sentence for a person, if anything.
func flawOf(s string) string {
	switch {
	case s == "":
		return "is empty"
	case !utf8.ValidString(s):
		return "is no UTF-8"
	case len(s) > 600:
		return "is too long"
	case strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0:
		return "is not printable"
	case strings.Contains(s, testKey), strings.Contains(s, testSecret), strings.Contains(s, "leaked"), strings.Contains(s, "AWS4-HMAC"):
		return "repeats what is not for people"
	case strings.Contains(s, "{"):
		return "has a gap"
	}
	return ""
}

func TestEveryAnswerBecomesOneSentence(t *testing.T) {
	now := func(off time.Duration) string { return time.Now().Add(off).UTC().Format(http.TimeFormat) }
	long := strings.Repeat("leaked ", 1500)
	for _, c := range []struct {
		name      string
		op        string
		answer    reply
		class     Class
		temporary bool
		want      string
	}{
		// Keys.
		{"wrong key, Amazon, MinIO, versitygw", "check", s3Error(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
			ClassAccessKey, false, `bucket "pics" refused the access key (InvalidAccessKeyId)`},
		{"wrong key, R2", "check", s3Error(401, "Unauthorized", "Unauthorized"),
			ClassAccessKey, false, `bucket "pics" refused the access key, or a proxy in front of HOST wants a login (status 401)`},
		{"wrong key, R2, with other words", "check", s3Error(401, "Unauthorized", "Missing or invalid authentication credentials."),
			ClassAccessKey, false, `bucket "pics" refused the access key: it is unknown, or has expired (Unauthorized)`},
		{"wrong secret", "check", s3Error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.", "<SignatureProvided>leaked</SignatureProvided>"),
			ClassSecret, false, `bucket "pics" refused the signature: the secret access key is wrong (SignatureDoesNotMatch)`},
		{"wrong secret on a write", "write", s3Error(403, "SignatureDoesNotMatch", "x"),
			ClassSecret, false, `bucket "pics" refused the signature: the secret access key is wrong (SignatureDoesNotMatch)`},
		{"expired token", "check", s3Error(400, "ExpiredToken", "The provided token has expired.", "<Token-0>leaked</Token-0>"),
			ClassExpired, false, `bucket "pics": the temporary credentials have expired (ExpiredToken)`},
		{"expired token on a read", "read", s3Error(400, "ExpiredToken", "The provided token has expired."),
			ClassExpired, false, `bucket "pics": the temporary credentials have expired (ExpiredToken)`},
		{"bad token", "check", s3Error(400, "InvalidToken", "The provided token is malformed or otherwise invalid."),
			ClassAccessKey, false, `bucket "pics" refused the session token of the temporary credentials (InvalidToken)`},
		{"bad token, MinIO", "check", s3Error(403, "InvalidTokenId", "The security token included in the request is invalid"),
			ClassAccessKey, false, `bucket "pics" refused the session token of the temporary credentials (InvalidTokenId)`},

		// Buckets.
		{"no bucket", "check", s3Error(404, "NoSuchBucket", "The specified bucket does not exist", "<BucketName>pics</BucketName>"),
			ClassBucket, false, `there is no bucket "pics" at HOST (NoSuchBucket)`},
		{"bucket lost while running", "write", s3Error(404, "NoSuchBucket", "The specified bucket does not exist"),
			ClassBucket, false, `there is no bucket "pics" at HOST (NoSuchBucket)`},
		{"bad bucket name", "check", s3Error(400, "InvalidBucketName", "The specified bucket is not valid."),
			ClassBucket, false, `HOST does not accept "pics" as a bucket name: check --bucket (InvalidBucketName)`},

		// Denied, by action.
		{"denied check", "check", s3Error(403, "AccessDenied", "Access Denied"),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:ListBucket (AccessDenied)`},
		{"denied list", "list", s3Error(403, "AccessDenied", "Access Denied"),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:ListBucket (AccessDenied)`},
		{"denied read", "read", s3Error(403, "AccessDenied", "Access Denied."),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:GetObject (AccessDenied)`},
		{"denied write", "write", s3Error(403, "AccessDenied", "Access Denied"),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:PutObject (AccessDenied)`},
		{"denied begin of a large upload", "begin", s3Error(403, "AccessDenied", "Access Denied"),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:PutObject (AccessDenied)`},
		{"denied part of a large upload", "part", s3Error(403, "AccessDenied", "Access Denied"),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:PutObject (AccessDenied)`},
		{"denied end of a large upload", "complete", s3Error(403, "AccessDenied", "Access Denied"),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:PutObject (AccessDenied)`},
		{"denied delete", "delete", s3Error(403, "AccessDenied", "Access Denied"),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:DeleteObject (AccessDenied)`},
		{"denied, Amazon names the action", "write", s3Error(403, "AccessDenied", "User: arn:aws:iam::111122223333:user/leaked is not authorized to perform: kms:GenerateDataKey on resource: arn:leaked because no identity-based policy allows the kms:GenerateDataKey action"),
			ClassDenied, false, `bucket "pics" denied access: the key needs kms:GenerateDataKey (AccessDenied)`},
		{"denied explicitly", "write", s3Error(403, "AccessDenied", `User: arn:leaked is not authorized to perform: s3:PutObject on resource: "arn:leaked" with an explicit deny in a resource-based policy`),
			ClassDenied, false, `bucket "pics" denied access: a policy denies the key s3:PutObject (AccessDenied)`},
		{"denied, an action that is none", "write", s3Error(403, "AccessDenied", "not authorized to perform: leaked "+long),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:PutObject (AccessDenied)`},
		{"account closed, Amazon", "check", s3Error(403, "AllAccessDisabled", "All access to this object has been disabled"),
			ClassDenied, false, `HOST has closed or limited the account of bucket "pics": ask the provider (AllAccessDisabled)`},
		{"account suspended, Ceph", "check", s3Error(403, "UserSuspended", ""),
			ClassDenied, false, `HOST has closed or limited the account of bucket "pics": ask the provider (UserSuspended)`},
		{"not entitled, R2", "check", s3Error(403, "NotEntitled", "Please enable R2 through the Cloudflare Dashboard."),
			ClassDenied, false, `HOST has closed or limited the account of bucket "pics": ask the provider (NotEntitled)`},
		{"a code of 403 that nobody knows", "write", s3Error(403, "ForbiddenByMoon", "x"),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:PutObject (ForbiddenByMoon)`},

		// Clock and region.
		{"clock ahead", "check", with(s3Error(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."), "Date", "-3h"),
			ClassClock, false, `bucket "pics" refused the request's time: this machine's clock is 3h0m ahead of the service's (RequestTimeTooSkewed)`},
		{"clock behind, on a write", "write", with(s3Error(403, "RequestTimeTooSkewed", "x"), "Date", "25m"),
			ClassClock, false, `bucket "pics" refused the request's time: this machine's clock is 25m behind the service's (RequestTimeTooSkewed)`},
		{"clock, no date", "check", with(s3Error(403, "RequestTimeTooSkewed", "x"), "Date", "leaked"),
			ClassClock, false, `bucket "pics" refused the request's time: this machine's clock is wrong (RequestTimeTooSkewed)`},
		{"region, Amazon", "check", with(s3Error(301, "PermanentRedirect", "The bucket you are attempting to access must be addressed using the specified endpoint.", "<Endpoint>pics.s3.eu-west-1.amazonaws.com</Endpoint>"), "X-Amz-Bucket-Region", "eu-west-1"),
			ClassRegion, false, `bucket "pics" is in the region eu-west-1: check --region and --endpoint (PermanentRedirect)`},
		{"region, versitygw", "check", s3Error(400, "AuthorizationHeaderMalformed", "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-test-7'", "<Region>eu-test-7</Region>"),
			ClassRegion, false, `bucket "pics" refused the region in the signature, or a malformed access key: check --region and --access-key-id (AuthorizationHeaderMalformed)`},
		{"region, MinIO", "write", s3Error(400, "InvalidRegion", "Region does not match."),
			ClassRegion, false, `bucket "pics" is in another region: check --region and --endpoint (InvalidRegion)`},
		{"region, R2", "check", s3Error(400, "InvalidRegionName", "The region name 'us-east-9' is not valid."),
			ClassRegion, false, `bucket "pics" is in another region: check --region and --endpoint (InvalidRegionName)`},

		// Too much.
		{"throttled, Amazon", "check", s3Error(503, "SlowDown", "Please reduce your request rate."),
			ClassThrottled, true, `bucket "pics" asks for fewer requests (SlowDown)`},
		{"throttled write", "write", s3Error(503, "SlowDown", "Please reduce your request rate."),
			ClassThrottled, true, `bucket "pics" asks for fewer requests (SlowDown)`},
		{"throttled, MinIO", "check", s3Error(503, "SlowDownWrite", "Resource requested is unwritable, please reduce your request rate"),
			ClassThrottled, true, `bucket "pics" asks for fewer requests (SlowDownWrite)`},
		{"throttled, R2", "check", s3Error(429, "TooManyRequests", "Reduce your concurrent request rate for the same object."),
			ClassThrottled, true, `bucket "pics" asks for fewer requests (TooManyRequests)`},
		{"throttled by a proxy", "check", page(429),
			ClassThrottled, true, `bucket "pics" asks for fewer requests (status 429)`},
		{"quota, Ceph", "write", s3Error(403, "QuotaExceeded", ""),
			ClassQuota, true, `bucket "pics" is full: its quota is used up (QuotaExceeded)`},
		{"quota, MinIO", "write", s3Error(400, "XMinioAdminBucketQuotaExceeded", "Bucket quota exceeded"),
			ClassQuota, true, `bucket "pics" is full: its quota is used up (XMinioAdminBucketQuotaExceeded)`},
		{"cap, B2", "read", s3Error(403, "AccessDenied", "Transaction cap exceeded, see the Caps &amp; Alerts page to increase your cap."),
			ClassQuota, true, `bucket "pics" has reached a cap of its account: raise it at the provider (AccessDenied)`},
		{"disks full, MinIO", "write", s3Error(507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold. Please delete a few objects to proceed."),
			ClassQuota, true, `bucket "pics" is full: the disks of HOST have no room left (XMinioStorageFull)`},
		{"bare 507", "write", reply{status: 507},
			ClassQuota, true, `bucket "pics" is full: the disks of HOST have no room left (status 507)`},
		{"too large", "write", s3Error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size"),
			ClassSize, false, `bucket "pics" refused an upload for its size: raise the limit at HOST, or of a proxy in front of it (EntityTooLarge)`},
		{"too large for a proxy", "write", page(413),
			ClassSize, false, `bucket "pics" refused an upload for its size: raise the limit at HOST, or of a proxy in front of it (status 413)`},

		// The service's own faults.
		{"500", "check", s3Error(500, "InternalError", "We encountered an internal error. Please try again."),
			ClassServer, true, `the service of bucket "pics" at HOST reports a fault of its own (InternalError)`},
		{"500 in a 200", "complete", s3Error(200, "InternalError", "We encountered an internal error. Please try again."),
			ClassServer, true, `the service of bucket "pics" at HOST reports a fault of its own (InternalError)`},
		{"starting, MinIO", "check", s3Error(503, "XMinioServerNotInitialized", "Server not initialized yet, please try again."),
			ClassServer, true, `HOST is still starting up (XMinioServerNotInitialized)`},
		{"502 of a proxy", "check", page(502, "<center>nginx</center>"),
			ClassServer, true, `the service of bucket "pics" at HOST reports a fault of its own (status 502)`},
		{"503 without a body", "check", reply{status: 503},
			ClassServer, true, `the service of bucket "pics" at HOST reports a fault of its own (status 503)`},
		{"a code of 5xx that nobody knows", "check", s3Error(599, "TooMuchMoon", "x"),
			ClassServer, true, `the service of bucket "pics" at HOST reports a fault of its own (TooMuchMoon)`},
		{"request timeout", "write", s3Error(400, "RequestTimeout", "Your socket connection to the server was not read from or written to within the timeout period."),
			ClassTimeout, true, `bucket "pics" did not receive the request in time (RequestTimeout)`},
		{"request timeout of a proxy", "check", page(408),
			ClassTimeout, true, `bucket "pics" did not receive the request in time (status 408)`},
		{"busy", "write", s3Error(409, "OperationAborted", "A conflicting conditional operation is currently in progress against this resource. Please try again."),
			ClassServer, true, `bucket "pics" is busy with another change to the same thing (OperationAborted)`},

		// What a request or an object is.
		{"KMS", "write", s3Error(400, "KMS.DisabledException", "arn:leaked is disabled."),
			ClassKMS, false, `bucket "pics" can't use its encryption key: see that the KMS key is there, enabled, and open to this access key (KMS.DisabledException)`},
		{"KMS, another", "read", s3Error(400, "KMS.Odd", "x"),
			ClassKMS, false, `bucket "pics" can't use its encryption key: see that the KMS key is there, enabled, and open to this access key (KMS.Odd)`},
		{"archived", "read", s3Error(403, "InvalidObjectState", "The operation is not valid for the object's storage class", "<StorageClass>GLACIER</StorageClass>"),
			ClassArchived, false, `bucket "pics" has moved a file of the replica to an archive: get it back from there, and end the lifecycle rule that does it (InvalidObjectState)`},
		{"not implemented", "delete", s3Error(501, "NotImplemented", "A header you provided implies functionality that is not implemented"),
			ClassUnsupported, false, `HOST does not offer what a replica needs (DeleteObjects): is it the address of an S3 service? (NotImplemented)`},
		{"a website's address", "write", s3Error(405, "MethodNotAllowed", "The specified method is not allowed against this resource."),
			ClassUnsupported, false, `HOST does not offer what a replica needs (PutObject): is it the address of an S3 service? (MethodNotAllowed)`},
		{"damaged on the way", "write", s3Error(400, "BadDigest", "The Content-MD5 you specified did not match what we received."),
			ClassNetwork, true, `what bucket "pics" received is not what was sent: something between here and HOST changes requests (BadDigest)`},
		{"changed on the way", "write", s3Error(400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."),
			ClassNetwork, true, `what bucket "pics" received is not what was sent: something between here and HOST changes requests (XAmzContentSHA256Mismatch)`},
		{"upload dropped", "part", s3Error(404, "NoSuchUpload", "The specified upload does not exist."),
			ClassOther, true, `bucket "pics" has dropped a half-done upload; it is made again (NoSuchUpload, status 404)`},
		{"a file in the way, MinIO", "write", s3Error(400, "XMinioParentIsObject", "Object-prefix is already an object, please choose a different object-prefix name."),
			ClassOther, false, `bucket "pics" has an object where the replica needs a folder: choose another --path-prefix (XMinioParentIsObject, status 400)`},
		{"invalid request", "write", s3Error(400, "InvalidRequest", "leaked"),
			ClassOther, false, `bucket "pics" refused PutObject (InvalidRequest, status 400)`},
		{"malformed XML", "delete", s3Error(400, "MalformedXML", "leaked"),
			ClassOther, false, `bucket "pics" refused DeleteObjects (MalformedXML, status 400)`},
		{"invalid argument", "check", s3Error(400, "InvalidArgument", "Credential access key has length 20, should be 32"),
			ClassOther, false, `bucket "pics" refused ListObjectsV2 (InvalidArgument, status 400)`},
		{"invalid digest", "delete", s3Error(400, "InvalidDigest", "leaked"),
			ClassOther, false, `bucket "pics" refused DeleteObjects (InvalidDigest, status 400)`},

		// Somebody else than an S3 service.
		{"404 of a proxy", "check", page(404),
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint (status 404)`},
		{"404 in plain text", "write", reply{404, nil, "404 page not found\n"},
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint (status 404)`},
		{"403 of a firewall", "check", page(403),
			ClassDenied, false, `HOST denied access to bucket "pics" without saying why, as a proxy or a firewall does (status 403)`},
		{"403 without a body", "write", reply{status: 403},
			ClassDenied, false, `HOST denied access to bucket "pics" without saying why, as a proxy or a firewall does (status 403)`},
		{"403 in broken XML", "check", reply{403, nil, "<Error><Code>AccessDen"},
			ClassDenied, false, `HOST denied access to bucket "pics" without saying why, as a proxy or a firewall does (status 403)`},
		{"401 of a proxy", "check", reply{401, map[string]string{"Www-Authenticate": "Basic"}, "leaked"},
			ClassAccessKey, false, `bucket "pics" refused the access key, or a proxy in front of HOST wants a login (status 401)`},
		{"407", "check", page(407),
			ClassNetwork, false, `the proxy on the way to HOST wants a user and a password: put them into HTTP_PROXY or HTTPS_PROXY (status 407)`},
		{"400 of a port for TLS", "check", page(400, "The plain HTTP request was sent to HTTPS port"),
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service, or wants https://: check --endpoint (status 400)`},
		{"TLS wanted, MinIO", "check", s3Error(400, "XMinioInsecureClientRequest", "Cannot respond to plain-text request from TLS-encrypted server"),
			ClassTLS, false, `HOST wants TLS: write the endpoint with https:// (XMinioInsecureClientRequest)`},
		{"301 to nowhere", "check", reply{status: 301},
			ClassEndpoint, true, `HOST sends requests for bucket "pics" elsewhere: write the address of the S3 service itself in --endpoint (status 301)`},
		{"301 with the region alone", "check", reply{301, map[string]string{"X-Amz-Bucket-Region": "eu-west-1"}, ""},
			ClassRegion, false, `bucket "pics" is in the region eu-west-1: check --region and --endpoint (status 301)`},
		{"301 to https", "check", with(page(301), "Location", "https://s3.example.com/pics?leaked"),
			ClassEndpoint, true, `HOST sends requests for bucket "pics" to https://s3.example.com: if that is the S3 service, write it in --endpoint (status 301)`},
		{"302 of a captive portal", "check", with(page(302), "Location", "http://me:leaked@portal.example/login"),
			ClassEndpoint, true, `HOST sends requests for bucket "pics" elsewhere: write the address of the S3 service itself in --endpoint (status 302)`},
		{"200 of a captive portal", "check", page(200),
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint (status 200)`},
		{"200 of a captive portal, well-formed", "check", reply{200, nil, "<html><body>leaked</body></html>"},
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint`},
		{"200 without a body", "check", reply{status: 200},
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint`},
		{"200 of garbage", "check", reply{200, nil, "\x00\x01<<leaked"},
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint (status 200)`},
		{"200 of garbage in a list", "list", reply{200, nil, "<a><b></a>leaked"},
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint (status 200)`},
		{"200 of a captive portal for a write", "write", page(200),
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint`},
		{"511", "check", page(511),
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service: check --endpoint (status 511)`},

		// Servers that lie.
		{"control characters", "check", s3Error(418, "Odd\tCode&#x9;\u202e\u2028x", "a\r\n\tb"),
			ClassOther, false, `bucket "pics" refused ListObjectsV2 (Odd Code x, status 418)`},
		{"a code of 10 kB", "check", s3Error(400, strings.Repeat("Code", 2500), "x"),
			ClassOther, false, `bucket "pics" refused ListObjectsV2 (` + strings.Repeat("Code", 15) + `…, status 400)`},
		{"a message of 10 kB", "write", s3Error(403, "AccessDenied", long),
			ClassDenied, false, `bucket "pics" denied access: the key needs s3:PutObject (AccessDenied)`},
		{"a message and no code", "check", s3Error(400, "", "leaked"),
			ClassEndpoint, true, `the server at HOST that answers for bucket "pics" is not an S3 service, or wants https://: check --endpoint (status 400)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(service(c.op, func() reply {
				a := c.answer
				if off, err := time.ParseDuration(a.header["Date"]); err == nil {
					a = with(a, "Date", now(off))
				}
				return a
			}))
			defer srv.Close()
			client := openAt(t, srv.URL)
			wantProblem(t, client, do(t, client, c.op), c.class, c.temporary, c.want)
		})
	}
}

func with(r reply, name, value string) reply {
	header := map[string]string{name: value}
	for k, v := range r.header {
		if k != name {
			header[k] = v
		}
	}
	r.header = header
	return r
}

// A service may refuse single files of a DELETE that succeeds.
func TestRefusedDeletesOfSingleFiles(t *testing.T) {
	results := `<DeleteResult><Deleted><Key>p/0000/x</Key></Deleted><Error><Key>p/0000/0000000000000002-0000000000000002.ltx</Key>` +
		`<Code>AccessDenied</Code><Message>leaked ` + testKey + `</Message></Error></DeleteResult>`
	for name, c := range map[string]struct {
		one       reply
		class     Class
		temporary bool
		want      string
	}{
		"denied":    {s3Error(403, "AccessDenied", "Access Denied"), ClassDenied, false, `bucket "pics" denied access: the key needs s3:DeleteObject (AccessDenied)`},
		"throttled": {s3Error(503, "SlowDown", "x"), ClassThrottled, true, `bucket "pics" asks for fewer requests (SlowDown)`},
		"deleted":   {one: reply{status: 204}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked []string
			one := service("delete one", func() reply { return c.one })
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch wants(r) {
				case "delete":
					_, _ = io.WriteString(w, results)
					return
				case "delete one":
					asked = append(asked, r.URL.Path)
				}
				one.ServeHTTP(w, r)
			}))
			defer srv.Close()
			client := openAt(t, srv.URL)
			err := do(t, client, "delete one")
			if c.want == "" {
				if err != nil {
					t.Errorf("%v", err)
				}
			} else {
				wantProblem(t, client, err, c.class, c.temporary, c.want)
			}
			for _, path := range asked {
				if path != "/pics/p/0000/0000000000000002-0000000000000002.ltx" {
					t.Errorf("asked to delete %s", path)
				}
			}
		})
	}
}

// A page that is not a list must never pass for a bucket without a backup: an app would
// start with an empty database.
func TestOnlyAListIsEmpty(t *testing.T) {
	for name, body := range map[string]string{
		"nothing": "", "text": "welcome", "a page": "<html><body>welcome</body></html>", "another document": "<ListAllMyBucketsResult></ListAllMyBucketsResult>",
	} {
		srv := httptest.NewServer(service("check", func() reply { return reply{200, nil, body} }))
		if empty, err := openAt(t, srv.URL).Empty(t.Context()); empty || err == nil {
			t.Errorf("%s: empty %v, %v", name, empty, err)
		}
		srv.Close()
	}
	srv := httptest.NewServer(service("", nil))
	defer srv.Close()
	if empty, err := openAt(t, srv.URL).Empty(t.Context()); !empty || err != nil {
		t.Errorf("an empty list: empty %v, %v", empty, err)
	}
}

func TestATemporaryKeyWithoutItsToken(t *testing.T) {
	srv := httptest.NewServer(service("check", func() reply { return s3Error(403, "InvalidAccessKeyId", "x") }))
	defer srv.Close()
	c := openAt(t, srv.URL, func(cfg *Config) { cfg.AccessKeyID = "ASIATESTKEY000000000" })
	wantProblem(t, c, c.Check(t.Context()), ClassAccessKey, false, `bucket "pics" refused the access key: it is a temporary one, which needs its session token; `+
		`leave both flags out and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (InvalidAccessKeyId)`)
}

// The SDK's chain may ask a service of AWS for keys; its answer is not the bucket's.
func TestNoKeysFromTheChain(t *testing.T) {
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>leaked</Message></Error></ErrorResponse>")
	}))
	defer sts.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("made-up"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "",
		"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "", "AWS_ENDPOINT_URL_STS": sts.URL,
	} {
		t.Setenv(name, value)
	}
	keyless := func(cfg *Config) { cfg.AccessKeyID, cfg.SecretAccessKey = "", "" }
	c := openAt(t, "http://127.0.0.1:9", keyless)
	wantProblem(t, c, c.Check(t.Context()), ClassNoKeys, false, `no keys for bucket "pics": set --access-key-id and --secret-access-key`)

	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/x")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
	c = openAt(t, "http://127.0.0.1:9", keyless)
	wantProblem(t, c, c.Check(t.Context()), ClassNoKeys, false,
		`no keys for bucket "pics": set --access-key-id and --secret-access-key (the AWS_ settings were tried: AccessDenied)`)
}

// A service that gives keys may fall silent; the next request for keys is one of its own.
func TestKeysThatNeverCome(t *testing.T) {
	old := stallAfter
	stallAfter = 100 * time.Millisecond
	defer func() { stallAfter = old }()
	var asked atomic.Int64
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if asked.Add(1) == 1 {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, `<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIATESTKEY000000000</AccessKeyId>`+
			`<SecretAccessKey>made-up</SecretAccessKey><SessionToken>made-up</SessionToken><Expiration>2100-01-01T00:00:00Z</Expiration>`+
			`</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`)
	}))
	defer sts.Close()
	srv := httptest.NewServer(service("", nil))
	defer srv.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("made-up"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "", "AWS_ENDPOINT_URL_STS": sts.URL,
		"AWS_ROLE_ARN": "arn:aws:iam::111122223333:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": token,
	} {
		t.Setenv(name, value)
	}
	c := openAt(t, srv.URL, func(cfg *Config) { cfg.AccessKeyID, cfg.SecretAccessKey = "", "" })
	if err := c.Init(t.Context()); !errors.Is(err, errStalled) {
		t.Errorf("the first: %v", err)
	}
	err := c.Init(t.Context())
	for until := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(until); {
		err = c.Init(t.Context())
	}
	if err != nil {
		t.Errorf("then: %v", err)
	}
}

// listen serves every connection with one function, without HTTP.
func listen(t testing.TB, serve func(*net.TCPConn)) (addr string) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return l.Addr().String()
}

// readHead reads a request, so that closing the connection does not reset it.
func readHead(conn net.Conn) { _, _ = conn.Read(make([]byte, 64<<10)) }

func TestConnectionsThatFail(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	say := func(text string) func(*net.TCPConn) {
		return func(conn *net.TCPConn) {
			defer func() { _ = conn.Close() }()
			readHead(conn)
			_, _ = io.WriteString(conn, text)
		}
	}
	for _, c := range []struct {
		name, endpoint string
		class          Class
		temporary      bool
		want           string
	}{
		{"refused", "http://" + closed.Addr().String(), ClassRefused, true, `bucket "pics" can't be reached: nothing listens at HOST (connection refused)`},
		{"reset", "http://" + listen(t, func(conn *net.TCPConn) {
			readHead(conn)
			_ = conn.SetLinger(0)
			_ = conn.Close()
		}), ClassNetwork, true, `bucket "pics" can't be reached: HOST broke the connection off`},
		{"closed", "http://" + listen(t, say("")), ClassNetwork, true, `bucket "pics" can't be reached: HOST broke the connection off`},
		{"closed in the header", "http://" + listen(t, say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n")), ClassNetwork, true, `bucket "pics" can't be reached: HOST broke the connection off`},
		{"closed in the body", "http://" + listen(t, say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<ListBucketResult>")), ClassNetwork, true,
			`bucket "pics" can't be reached: HOST broke the connection off`},
		{"another protocol", "http://" + listen(t, say("SSH-2.0-OpenSSH_9.9\r\n")), ClassEndpoint, true,
			`what answers at HOST for bucket "pics" does not speak HTTP: check --endpoint`},
		{"a broken header", "http://" + listen(t, say("HTTP/1.1 200 OK\r\nleaked\r\n\r\n")), ClassEndpoint, true,
			`what answers at HOST for bucket "pics" does not speak HTTP: check --endpoint`},
		{"plain on a TLS port", "http://" + listen(t, say("\x15\x03\x01\x00\x02\x02\x46")), ClassTLS, false,
			`bucket "pics": HOST wants TLS on this port: write the endpoint with https://`},
		{"closed in the handshake", "https://" + listen(t, say("")), ClassNetwork, true, `bucket "pics" can't be reached: HOST broke the connection off`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			client := openAt(t, c.endpoint)
			wantProblem(t, client, do(t, client, "check"), c.class, c.temporary, c.want)
		})
	}
	t.Run("unknown host", func(t *testing.T) {
		t.Parallel()
		client := openAt(t, "http://no-such-host.invalid:9000")
		p := client.Explain(do(t, client, "check"))
		// A machine without a name server says the second.
		if p.Class != ClassDNS || !p.Temporary || (p.Sentence != `bucket "pics" can't be reached: there is no host "no-such-host.invalid" (DNS)` &&
			p.Sentence != `bucket "pics" can't be reached: the name server did not resolve "no-such-host.invalid"`) {
			t.Errorf("%+v", p)
		}
	})
	t.Run("a file that breaks off", func(t *testing.T) {
		t.Parallel()
		srv := httptest.NewServer(service("read", func() reply {
			return reply{206, map[string]string{"Content-Length": "1000"}, "ten bytes."}
		}))
		defer srv.Close()
		client := openAt(t, srv.URL)
		wantProblem(t, client, do(t, client, "read"), ClassNetwork, true, `bucket "pics" can't be reached: HOST broke the connection off`)
	})
}

func TestSilence(t *testing.T) {
	old := stallAfter
	stallAfter = 300 * time.Millisecond
	defer func() { stallAfter = old }()
	ok := service("", nil)
	// half answers the operation with a beginning, or none, and then is silent.
	half := func(op, head string) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if wants(r) != op {
				ok.ServeHTTP(w, r)
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			if head != "" {
				w.Header().Set("Content-Length", "1000")
				_, _ = io.WriteString(w, head)
				_ = http.NewResponseController(w).Flush()
			}
			<-r.Context().Done()
		}))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	silent := listen(t, func(conn *net.TCPConn) {
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	})
	for _, c := range []struct{ name, op, endpoint string }{
		{"no answer", "check", "http://" + silent},
		{"no handshake", "check", "https://" + silent},
		{"half a check", "check", half("check", "<ListBucketResult>")},
		{"half a list", "list", half("list", "<ListBucketResult>")},
		{"half a file", "read", half("read", "LTX1")},
		{"no answer to a write", "write", half("write", "")},
		{"half an answer to a delete", "delete", half("delete", "<DeleteResult>")},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := openAt(t, c.endpoint)
			wantProblem(t, client, do(t, client, c.op), ClassTimeout, true, `bucket "pics" at HOST sent no answer for 20s`)
		})
	}
}

// certificate is one for 127.0.0.1 that nobody has signed.
func certificate(t testing.TB, from, to time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestTLSThatFails(t *testing.T) {
	secure := func(cfg *tls.Config) string {
		srv := httptest.NewUnstartedServer(service("", nil))
		srv.TLS = cfg
		srv.Config.ErrorLog = nil
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv.URL
	}
	plain := httptest.NewServer(service("", nil))
	t.Cleanup(plain.Close)
	day := 24 * time.Hour
	for _, c := range []struct {
		name, endpoint string
		class          Class
		temporary      bool
		want           string
	}{
		{"unknown authority", secure(nil), ClassTLS, false,
			`bucket "pics": HOST has a certificate of an unknown authority: put its CA into the image and name the file in SSL_CERT_FILE`},
		{"wrong host", strings.Replace(secure(nil), "127.0.0.1", "localhost", 1), ClassTLS, false, `bucket "pics": HOST has a certificate for another host name`},
		{"expired", secure(&tls.Config{Certificates: []tls.Certificate{certificate(t, time.Now().Add(-2*day), time.Now().Add(-day))}}), ClassTLS, false,
			`bucket "pics": HOST has a certificate that ended at TIME, and by this machine's clock it is TIME`},
		{"not yet valid", secure(&tls.Config{Certificates: []tls.Certificate{certificate(t, time.Now().Add(day), time.Now().Add(2*day))}}), ClassTLS, false,
			`bucket "pics": HOST has a certificate that begins at TIME, and by this machine's clock it is TIME`},
		{"too old a protocol", secure(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}), ClassTLS, false,
			`bucket "pics": HOST and this client can't agree on TLS: protocol version not supported`},
		{"TLS to a plain port", strings.Replace(plain.URL, "http://", "https://", 1), ClassTLS, false,
			`bucket "pics": HOST does not speak TLS on this port: write the endpoint with http://, or use the TLS port`},
		{"plain to a TLS port", strings.Replace(secure(nil), "https://", "http://", 1), ClassEndpoint, true,
			`the server at HOST that answers for bucket "pics" is not an S3 service, or wants https://: check --endpoint (status 400)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			client := openAt(t, c.endpoint)
			wantProblem(t, client, do(t, client, "check"), c.class, c.temporary, c.want)
		})
	}
}

// FuzzExplain checks that any answer of a server becomes a sentence without a flaw.
func FuzzExplain(f *testing.F) {
	f.Add(403, "AccessDenied", "Access Denied", []byte(nil))
	f.Add(301, "", "", []byte("<html>"))
	f.Add(200, "", "", []byte("<ListBucketResult><Name>pics</Name></ListBucketResult>"))
	f.Add(400, "KMS.\x1b[2J\u202e", "not authorized to perform: s3:\xff", []byte(nil))
	f.Add(599, "\xff{host}{bucket}", strings.Repeat("{name}", 100), []byte(nil))
	f.Fuzz(func(t *testing.T, status int, code, message string, body []byte) {
		status = 200 + (status%400+400)%400
		if body == nil {
			body = []byte(s3Error(status, code, message).body)
		}
		client := openAt(t, "http://s3.example.com")
		b, ok := client.place.(*bucket)
		if !ok {
			t.Fatalf("%T", client.place)
		}
		// One answer without a network or a retry, through the SDK's own reading of it.
		if err := b.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.transport.next = roundTripper(func(req *http.Request) (*http.Response, error) {
			return &http.Response{
				StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
				Header: http.Header{"Location": {code}, "Date": {message}, "X-Amz-Bucket-Region": {code}},
				Body:   io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
			}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := b.first(ctx)
		if err == nil {
			return
		}
		p := client.Explain(err)
		flaw := flawOf(p.Sentence)
		if flaw == "has a gap" && strings.Contains(code+message+string(body), "{") {
			flaw = ""
		}
		if flaw == "repeats what is not for people" && strings.Contains(code+message+string(body), "leaked") {
			flaw = ""
		}
		if flaw != "" || p.Class == "" {
			t.Errorf("the sentence %s: %q of class %q", flaw, p.Sentence, p.Class)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
