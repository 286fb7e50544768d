package storage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
)

// Class groups errors by what a person can do about them.
type Class string

// The classes of errors, as they stand in metrics and logs.
const (
	ClassAccessKey Class = "access_key" // the key is unknown
	ClassSecret    Class = "secret"     // the signature does not match
	ClassExpired   Class = "expired"    // a temporary credential ran out
	ClassNoKeys    Class = "no_keys"    // the SDK's chain found none
	ClassBucket    Class = "bucket"     // no such bucket
	ClassDenied    Class = "denied"     // the key may not do this
	ClassClock     Class = "clock"      // our clock is wrong
	ClassRegion    Class = "region"
	ClassTLS       Class = "tls"
	ClassDNS       Class = "dns"
	ClassRefused   Class = "refused" // nothing listens
	ClassNetwork   Class = "network" // reset, unreachable
	ClassTimeout   Class = "timeout"
	ClassThrottled Class = "throttled"
	ClassQuota     Class = "quota"
	ClassServer    Class = "server" // 5xx
	ClassFolder    Class = "folder" // a local replica folder
	ClassDisk      Class = "disk"   // our own disk
	ClassCanceled  Class = "canceled"
	ClassOther     Class = "other"
)

// Problem is an error of the replica, explained.
type Problem struct {
	Class Class
	// Sentence is one line for a person. It holds no secret.
	Sentence string
	// Temporary is true when the same request may well succeed later without
	// anybody changing anything.
	Temporary bool
}

// codes maps S3 error codes to classes. Sources: the Amazon S3 API reference's
// list of error codes, and the code lists of MinIO, Ceph and versitygw.
var codes = map[string]Class{
	"InvalidAccessKeyId":                 ClassAccessKey,
	"InvalidClientTokenId":               ClassAccessKey,
	"UnrecognizedClientException":        ClassAccessKey,
	"SignatureDoesNotMatch":              ClassSecret,
	"InvalidSignatureException":          ClassSecret,
	"ExpiredToken":                       ClassExpired,
	"ExpiredTokenException":              ClassExpired,
	"TokenRefreshRequired":               ClassExpired,
	"InvalidToken":                       ClassExpired,
	"NoSuchBucket":                       ClassBucket,
	"InvalidBucketName":                  ClassBucket,
	"AccessDenied":                       ClassDenied,
	"AccountProblem":                     ClassDenied,
	"AllAccessDisabled":                  ClassDenied,
	"RequestTimeTooSkewed":               ClassClock,
	"RequestExpired":                     ClassClock,
	"AuthorizationHeaderMalformed":       ClassRegion,
	"PermanentRedirect":                  ClassRegion,
	"IllegalLocationConstraintException": ClassRegion,
	"SlowDown":                           ClassThrottled,
	"Throttling":                         ClassThrottled,
	"ThrottlingException":                ClassThrottled,
	"TooManyRequests":                    ClassThrottled,
	"RequestLimitExceeded":               ClassThrottled,
	"QuotaExceeded":                      ClassQuota,
	"XMinioStorageFull":                  ClassQuota,
	"InternalError":                      ClassServer,
	"ServiceUnavailable":                 ClassServer,
	"RequestTimeout":                     ClassTimeout,
}

// actions names the permission that an operation of the SDK needs.
var actions = map[string]string{
	"ListObjectsV2":           "s3:ListBucket",
	"GetObject":               "s3:GetObject",
	"HeadObject":              "s3:GetObject",
	"PutObject":               "s3:PutObject",
	"CreateMultipartUpload":   "s3:PutObject",
	"UploadPart":              "s3:PutObject",
	"CompleteMultipartUpload": "s3:PutObject",
	"DeleteObject":            "s3:DeleteObject",
	"DeleteObjects":           "s3:DeleteObject",
}

func explain(err error, cfg Config) Problem {
	if err == nil {
		return Problem{}
	}
	e := explainer{cfg: cfg, err: err}
	for _, try := range []func() (Problem, bool){e.folder, e.local, e.service, e.secured, e.network} {
		if p, ok := try(); ok {
			return p
		}
	}
	return Problem{ClassOther, oneLine(err.Error()), true}
}

type explainer struct {
	cfg Config
	err error
}

func (e explainer) where() string {
	if e.cfg.Endpoint.IsFile() {
		return fmt.Sprintf("replica folder %q", e.cfg.Endpoint.Dir)
	}
	return fmt.Sprintf("bucket %q", e.cfg.Bucket)
}

// host is the service's name for messages about reaching it.
func (e explainer) host() string {
	if u, err := url.Parse(e.cfg.Endpoint.URL); err == nil && u.Host != "" {
		return u.Host
	}
	return "Amazon S3"
}

// folder explains what the operating system said of a local replica.
func (e explainer) folder() (Problem, bool) {
	var pathErr *fs.PathError
	if !e.cfg.Endpoint.IsFile() || !errors.As(e.err, &pathErr) {
		return Problem{}, false
	}
	return Problem{ClassFolder, fmt.Sprintf("%s: cannot %s %s: %v", e.where(), pathErr.Op, pathErr.Path, pathErr.Err), true}, true
}

// local explains errors of this side: our own disk, our own deadline.
func (e explainer) local() (Problem, bool) {
	switch {
	case errors.Is(e.err, syscall.ENOSPC), errors.Is(e.err, syscall.EDQUOT):
		return Problem{ClassDisk, "the local disk is full: replication waits until space is freed", true}, true
	case errors.Is(e.err, errStalled):
		return Problem{ClassTimeout, fmt.Sprintf("%s at %s gave %v", e.where(), e.host(), errStalled), true}, true
	case errors.Is(e.err, context.DeadlineExceeded):
		return Problem{ClassTimeout, fmt.Sprintf("%s at %s did not answer in time", e.where(), e.host()), true}, true
	case errors.Is(e.err, context.Canceled):
		return Problem{ClassCanceled, "canceled", true}, true
	}
	return Problem{}, false
}

// service explains what an S3 server answered.
func (e explainer) service() (Problem, bool) {
	var api smithy.APIError
	code := ""
	if errors.As(e.err, &api) {
		code = api.ErrorCode()
	}
	status := 0
	var res *awshttp.ResponseError
	if errors.As(e.err, &res) {
		status = res.HTTPStatusCode()
	}
	class, known := codes[code]
	if !known {
		switch {
		case status == http.StatusForbidden || status == http.StatusUnauthorized:
			class = ClassDenied
		case status == http.StatusTooManyRequests:
			class = ClassThrottled
		case status == http.StatusInsufficientStorage:
			class = ClassQuota
		case status >= 500:
			class = ClassServer
		case code != "" && status != 0:
			return Problem{ClassOther, fmt.Sprintf("%s answered %s (status %d)", e.where(), oneLine(code), status), false}, true
		default:
			return Problem{}, false
		}
	}
	tail := fmt.Sprintf(" (%s)", oneLine(code))
	if code == "" {
		tail = fmt.Sprintf(" (status %d)", status)
	}
	p := Problem{Class: class}
	switch class {
	case ClassAccessKey:
		p.Sentence = e.where() + " refused the access key" + tail
	case ClassSecret:
		p.Sentence = e.where() + " refused the signature: the secret access key is wrong" + tail
	case ClassExpired:
		p.Sentence = e.where() + ": the temporary credentials have expired" + tail
	case ClassBucket:
		p.Sentence = fmt.Sprintf("there is no bucket %q at %s%s", e.cfg.Bucket, e.host(), tail)
	case ClassDenied:
		p.Sentence = fmt.Sprintf("%s denied access%s%s", e.where(), e.action(), tail)
	case ClassClock:
		p.Sentence = e.where() + " refused the request's time: this machine's clock is wrong" + tail
	case ClassRegion:
		p.Sentence = e.where() + " is in another region: set --region" + tail
	case ClassQuota:
		p.Sentence, p.Temporary = e.where()+" is full: its quota is used up"+tail, true
	case ClassThrottled:
		p.Sentence, p.Temporary = e.where()+" asks for fewer requests"+tail, true
	case ClassTimeout:
		p.Sentence, p.Temporary = e.where()+" did not receive the request in time"+tail, true
	default:
		p.Sentence, p.Temporary = fmt.Sprintf("the service of %s at %s has a fault of its own%s", e.where(), e.host(), tail), true
	}
	return p, true
}

func (e explainer) action() string {
	var op *smithy.OperationError
	if errors.As(e.err, &op) {
		if a, ok := actions[op.OperationName]; ok {
			return ": the key needs " + a
		}
	}
	return ""
}

// secured explains what went wrong with TLS and with finding credentials.
func (e explainer) secured() (Problem, bool) {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		record   tls.RecordHeaderError
		alert    tls.AlertError
		verify   *tls.CertificateVerificationError
	)
	says := func(s string) (Problem, bool) {
		return Problem{ClassTLS, fmt.Sprintf("%s: %s %s", e.where(), e.host(), s), false}, true
	}
	switch {
	case errors.As(e.err, &unknown):
		return says("has a certificate of an unknown authority: put its CA into the image and name the file in SSL_CERT_FILE")
	case errors.As(e.err, &hostname):
		return says("has a certificate for another host name")
	case errors.As(e.err, &invalid):
		return says("has an invalid certificate: " + oneLine(invalid.Error()))
	case errors.As(e.err, &verify):
		return says("has a certificate that can't be verified: " + oneLine(verify.Err.Error()))
	case errors.As(e.err, &record), errors.Is(e.err, http.ErrSchemeMismatch):
		return says("does not speak TLS on this port: write the endpoint with http://, or use the TLS port")
	case errors.As(e.err, &alert):
		return says("ended the TLS handshake: " + alert.Error())
	}
	if errors.Is(e.err, errNoCredentials) {
		return Problem{ClassNoKeys, "no keys for " + e.where() + ": set --access-key-id and --secret-access-key", false}, true
	}
	return Problem{}, false
}

// network explains why the service could not be reached.
func (e explainer) network() (Problem, bool) {
	var (
		dns *net.DNSError
		op  *net.OpError
	)
	at := e.where() + " can't be reached: "
	switch {
	case errors.As(e.err, &dns) && dns.IsNotFound:
		return Problem{ClassDNS, at + fmt.Sprintf("there is no host %q (DNS)", dns.Name), true}, true
	case errors.As(e.err, &dns):
		return Problem{ClassDNS, at + fmt.Sprintf("the name server did not resolve %q", dns.Name), true}, true
	case errors.Is(e.err, syscall.ECONNREFUSED):
		return Problem{ClassRefused, at + fmt.Sprintf("nothing listens at %s (connection refused)", e.host()), true}, true
	case errors.Is(e.err, os.ErrDeadlineExceeded), isTimeout(e.err):
		return Problem{ClassTimeout, at + fmt.Sprintf("%s does not answer (timeout)", e.host()), true}, true
	case errors.Is(e.err, syscall.ECONNRESET), errors.Is(e.err, syscall.EPIPE):
		return Problem{ClassNetwork, at + fmt.Sprintf("%s broke the connection off", e.host()), true}, true
	case errors.As(e.err, &op):
		return Problem{ClassNetwork, at + oneLine(op.Err.Error()), true}, true
	}
	var sent *url.Error
	if errors.As(e.err, &sent) {
		return Problem{ClassNetwork, at + oneLine(sent.Err.Error()), true}, true
	}
	return Problem{}, false
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// oneLine keeps what others say short and printable.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if isControlOrSpace(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return s
}
