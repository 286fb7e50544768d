package storage

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
)

// meaning is what one kind of answer means to a person. In the sentence, {bucket} becomes
// the bucket with its name, {name} the bare name, {host} the service, and {request} the
// SDK's name of the request.
type meaning struct {
	class     Class
	temporary bool // the same request may succeed later although nobody changes anything
	says      string
}

var (
	unknownKey  = &meaning{ClassAccessKey, false, "{bucket} refused the access key"}
	badToken    = &meaning{ClassAccessKey, false, "{bucket} refused the session token of the temporary credentials"}
	wrongSecret = &meaning{ClassSecret, false, "{bucket} refused the signature: the secret access key is wrong"}
	expired     = &meaning{ClassExpired, false, "{bucket}: the temporary credentials have expired"}
	noBucket    = &meaning{ClassBucket, false, `there is no bucket "{name}" at {host}`}
	badName     = &meaning{ClassBucket, false, `{host} does not accept "{name}" as a bucket name: check --bucket`}
	denied      = &meaning{ClassDenied, false, "{bucket} denied access"}
	account     = &meaning{ClassDenied, false, "{host} has closed or limited the account of {bucket}: ask the provider"}
	skewed      = &meaning{ClassClock, false, "{bucket} refused the request's time: this machine's clock is wrong"}
	elsewhere   = &meaning{ClassRegion, false, "{bucket} is in another region: check --region and --endpoint"}
	encryption  = &meaning{ClassKMS, false, "{bucket} can't use its encryption key: see that the KMS key is there, enabled, and open to this access key"}
	archived    = &meaning{ClassArchived, false, "{bucket} has moved a file of the replica to an archive: get it back from there, and end the lifecycle rule that does it"}
	tooLarge    = &meaning{ClassSize, false, "{bucket} refused an upload for its size: raise the limit at {host}, or of a proxy in front of it"}
	unsupported = &meaning{ClassUnsupported, false, "{host} does not offer what a replica needs ({request}): is it the address of an S3 service?"}
	throttled   = &meaning{ClassThrottled, true, "{bucket} asks for fewer requests"}
	full        = &meaning{ClassQuota, true, "{bucket} is full: its quota is used up"}
	noRoom      = &meaning{ClassQuota, true, "{bucket} is full: the disks of {host} have no room left"}
	slow        = &meaning{ClassTimeout, true, "{bucket} did not receive the request in time"}
	starting    = &meaning{ClassServer, true, "{host} is still starting up"}
	busy        = &meaning{ClassServer, true, "{bucket} is busy with another change to the same thing"}
	fault       = &meaning{ClassServer, true, "the service of {bucket} at {host} reports a fault of its own"}
	garbled     = &meaning{ClassNetwork, true, "what {bucket} received is not what was sent: something between here and {host} changes requests"}
	aborted     = &meaning{ClassOther, true, "{bucket} has dropped a half-done upload; it is made again"}
	gone        = &meaning{ClassOther, false, "{bucket} does not have a file that was there before"}
)

// codes holds the meanings of S3's error codes. A code that is missing gets the meaning of
// its status. Sources: the list of error codes in the Amazon S3 API reference; MinIO's and
// Ceph's lists of their own codes (cmd/api-errors.go, rgw_http_errors), Cloudflare's list
// for R2, and the AWS SDK's list of throttling codes.
var codes = map[string]*meaning{
	"InvalidAccessKeyId":          unknownKey,
	"InvalidClientTokenId":        unknownKey,
	"UnrecognizedClientException": unknownKey,
	"Unauthorized":                {ClassAccessKey, false, "{bucket} refused the access key: it is unknown, or has expired"}, // R2
	"InvalidToken":                badToken,
	"InvalidTokenId":              badToken, // MinIO
	"SignatureDoesNotMatch":       wrongSecret,
	"InvalidSignatureException":   wrongSecret,
	"ExpiredToken":                expired,
	"ExpiredTokenException":       expired,
	"TokenRefreshRequired":        expired,

	"NoSuchBucket":      noBucket,
	"InvalidBucketName": badName,

	"AccessDenied":       denied,
	"UnauthorizedAccess": denied,
	"AccountProblem":     account,
	"AllAccessDisabled":  account,
	"NotSignedUp":        account,
	"NotEntitled":        account, // R2
	"UserSuspended":      account, // Ceph

	"RequestTimeTooSkewed": skewed,
	"RequestExpired":       skewed,
	"ExpiredRequest":       skewed, // R2
	"RequestInTheFuture":   skewed,

	"AuthorizationHeaderMalformed":       {ClassRegion, false, "{bucket} refused the region in the signature, or a malformed access key: check --region and --access-key-id"},
	"PermanentRedirect":                  elsewhere,
	"TemporaryRedirect":                  {ClassRegion, true, "{bucket} is still being moved to its region"},
	"IllegalLocationConstraintException": elsewhere,
	"InvalidRegion":                      elsewhere, // MinIO
	"InvalidRegionName":                  elsewhere, // R2
	"IncorrectEndpoint":                  elsewhere,
	"InvalidLocationConstraint":          elsewhere,

	"SlowDown":                               throttled,
	"SlowDownRead":                           throttled, // MinIO
	"SlowDownWrite":                          throttled, // MinIO
	"TooManyRequests":                        throttled,
	"TooManyRequestsException":               throttled,
	"RateLimitExceeded":                      throttled,
	"Throttling":                             throttled,
	"ThrottlingException":                    throttled,
	"ThrottledException":                     throttled,
	"RequestThrottled":                       throttled,
	"RequestThrottledException":              throttled,
	"RequestLimitExceeded":                   throttled,
	"LimitExceededException":                 throttled,
	"BandwidthLimitExceeded":                 throttled,
	"ProvisionedThroughputExceededException": throttled,

	"QuotaExceeded":                  full, // Ceph, and providers that run it
	"XMinioAdminBucketQuotaExceeded": full,
	"XMinioStorageFull":              noRoom,
	"EntityTooLarge":                 tooLarge,
	"MaxMessageLengthExceeded":       tooLarge,

	"InternalError":              fault,
	"ServiceUnavailable":         fault,
	"Busy":                       fault, // MinIO
	"XMinioBackendDown":          fault,
	"XMinioServerNotInitialized": starting,
	"OperationAborted":           busy,
	"ConditionalRequestConflict": busy,
	"RequestTimeout":             slow,
	"RequestCanceled":            slow, // Tigris, when it sheds load

	"KMS.DisabledException":         encryption,
	"KMS.NotFoundException":         encryption,
	"KMS.KMSInvalidStateException":  encryption,
	"KMS.InvalidKeyUsageException":  encryption,
	"InvalidObjectState":            archived,
	"NoSuchKey":                     gone,
	"NoSuchUpload":                  aborted,
	"BadDigest":                     garbled,
	"IncompleteBody":                garbled,
	"XAmzContentSHA256Mismatch":     garbled,
	"XAmzContentChecksumMismatch":   garbled, // MinIO
	"NotImplemented":                unsupported,
	"MethodNotAllowed":              unsupported,
	"XMinioInsecureClientRequest":   wantsTLS,
	"CredentialsNotSupported":       unsupported,
	"UnsupportedSignature":          unsupported,
	"XMinioObjectExistsAsDirectory": inTheWay,
	"XMinioParentIsObject":          inTheWay,
}

var (
	wantsTLS = &meaning{ClassTLS, false, "{host} wants TLS: write the endpoint with https://"}
	// A file system below the bucket, like MinIO's, can't hold a file "a" beside a file
	// "a/b".
	inTheWay = &meaning{ClassOther, false, "{bucket} has an object where the replica needs a folder: choose another --path-prefix"}

	notS3 = &meaning{ClassEndpoint, true, "the server at {host} that answers for {bucket} is not an S3 service: check --endpoint"}
	// R2 answers a wrong key with "Unauthorized" as code and message, which is also what the
	// SDK makes of an answer without either.
	bareLogin = &meaning{ClassAccessKey, false, "{bucket} refused the access key, or a proxy in front of {host} wants a login"}
	bareDeny  = &meaning{ClassDenied, false, "{host} denied access to {bucket} without saying why, as a proxy or a firewall does"}
	proxyAuth = &meaning{ClassNetwork, false, "the proxy on the way to {host} wants a user and a password: put them into HTTP_PROXY or HTTPS_PROXY"}
)

// byStatus returns the meaning of an answer without an S3 error: an empty body, or the page
// of a proxy.
func byStatus(status int) *meaning {
	switch status {
	case http.StatusUnauthorized:
		return bareLogin
	case http.StatusForbidden:
		return bareDeny
	case http.StatusProxyAuthRequired:
		return proxyAuth
	case http.StatusRequestTimeout:
		return slow
	case http.StatusRequestEntityTooLarge:
		return tooLarge
	case http.StatusTooManyRequests:
		return throttled
	case http.StatusInsufficientStorage:
		return noRoom
	case http.StatusNetworkAuthenticationRequired: // a captive portal, by RFC 6585
		return notS3
	}
	if status >= 500 {
		return fault
	}
	return notS3
}

// byFamily returns the meaning of an S3 error whose code we don't know.
func byFamily(code string, status int) *meaning {
	switch {
	case strings.HasPrefix(code, "KMS."):
		return encryption
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return denied
	case status == http.StatusTooManyRequests:
		return throttled
	case status == http.StatusInsufficientStorage:
		return full
	case status >= 500:
		return fault
	}
	return &meaning{ClassOther, false, "{bucket} refused {request}"}
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
	"AbortMultipartUpload":    "s3:AbortMultipartUpload",
	"DeleteObject":            "s3:DeleteObject",
	"DeleteObjects":           "s3:DeleteObject",
}

// answer is a server's answer, taken out of the SDK's layers of errors.
type answer struct {
	operation string // the SDK's name of the request
	status    int    // 0: there was no answer
	header    http.Header
	code      string // "" when the answer held no S3 error
	message   string // the server's words: never shown, they may repeat keys and signatures
	unread    bool   // the SDK could not read the answer as XML
}

func answerIn(err error) answer {
	var (
		a   answer
		op  *smithy.OperationError
		res *awshttp.ResponseError
		api smithy.APIError
		des *smithy.DeserializationError
	)
	if errors.As(err, &op) {
		a.operation = op.OperationName
	}
	if errors.As(err, &res) && res.Response != nil && res.Response.Response != nil {
		a.status, a.header = res.HTTPStatusCode(), res.Response.Header
	}
	if errors.As(err, &api) {
		a.code, a.message = strings.TrimSpace(api.ErrorCode()), api.ErrorMessage()
	}
	a.unread = errors.As(err, &des)
	// Where the server gives no code, the SDK makes one from the status text.
	text := http.StatusText(a.status)
	if a.code == strings.ReplaceAll(text, " ", "") && a.message == text || a.code == "UnknownError" {
		a.code = ""
	}
	return a
}

// service explains what an S3 server answered, or what answered in its place.
func (e explainer) service() (Problem, bool) {
	a := answerIn(e.err)
	if errors.Is(e.err, errNotS3) {
		return e.put(notS3, a), true
	}
	switch {
	case a.code == "" && a.status >= 300 && a.status < 400:
		return e.redirect(a), true
	case a.code == "" && a.status >= 400:
		m := byStatus(a.status)
		if m == notS3 && a.status == http.StatusBadRequest && strings.HasPrefix(e.cfg.Endpoint.URL, "http://") {
			// How web servers answer plain HTTP on a port for TLS.
			m = &meaning{ClassEndpoint, true, "the server at {host} that answers for {bucket} is not an S3 service, or wants https://: check --endpoint"}
		}
		return e.put(m, a), true
	case a.code == "" && a.unread && a.status != 0:
		if isCut(e.err) {
			return Problem{}, false // it broke off half-way
		}
		return e.put(notS3, a), true
	case a.code == "":
		return Problem{}, false
	}
	m, known := codes[a.code]
	if !known {
		m = byFamily(a.code, a.status)
	}
	return e.put(e.refine(m, a), a), true
}

// refine adds what the answer, or our own configuration, shows beyond the code.
func (e explainer) refine(m *meaning, a answer) *meaning {
	more := *m
	switch m {
	case unknownKey:
		// AWS gives temporary keys this prefix (IAM user guide, "unique identifiers"), and
		// accepts none of them without its token.
		if strings.HasPrefix(e.cfg.AccessKeyID, "ASIA") && e.cfg.SecretAccessKey != "" {
			more.says += ": it is a temporary one, which needs its session token; leave both flags out and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
		}
	case denied:
		// Backblaze B2 reports in the message alone that a cap is reached.
		if strings.Contains(strings.ToLower(a.message), "cap exceeded") {
			return &meaning{ClassQuota, true, "{bucket} has reached a cap of its account: raise it at the provider"}
		}
		more.says += a.permission()
	case skewed:
		if off := a.clockOff(time.Now()); off != "" {
			more.says = "{bucket} refused the request's time: this machine's clock is " + off
		}
	case elsewhere:
		if r := a.header.Get("X-Amz-Bucket-Region"); validRegion(r) {
			more.says = "{bucket} is in the region " + r + ": check --region and --endpoint"
		}
	}
	return &more
}

// unauthorized finds the action that a policy denies in Amazon's message. It need not be
// the request's own: with encryption by KMS, an upload needs kms:GenerateDataKey.
var unauthorized = lazily(`not authorized to perform: ([a-z0-9-]{1,32}:[A-Za-z]{1,64})\b`)

// permission names what the key may not do, after "denied access".
func (a answer) permission() string {
	action := actions[a.operation]
	if m := unauthorized().FindStringSubmatch(a.message); m != nil {
		action = m[1]
	}
	switch {
	case action == "":
		return ""
	case strings.Contains(a.message, "explicit deny"): // another permission would not help
		return ": a policy denies the key " + action
	}
	return ": the key needs " + action
}

// clockOff compares our clock with the time of the server's answer.
func (a answer) clockOff(now time.Time) string {
	at, err := http.ParseTime(a.header.Get("Date"))
	off := now.Sub(at).Round(time.Minute)
	switch {
	case err != nil, off == 0:
		return ""
	case off > 0:
		return strings.TrimSuffix(off.String(), "0s") + " ahead of the service's"
	}
	return strings.TrimSuffix((-off).String(), "0s") + " behind the service's"
}

// redirect explains an answer that names another place and that was not followed: one that
// would change the request, or one too many (see fewRedirects). To follow it would not help:
// a service refuses a request that was signed for another, and that would look like a wrong
// secret.
func (e explainer) redirect(a answer) Problem {
	m := meaning{ClassEndpoint, true, "{host} sends requests for {bucket} elsewhere: write the address of the S3 service itself in --endpoint"}
	if r := a.header.Get("X-Amz-Bucket-Region"); validRegion(r) {
		return e.put(e.refine(elsewhere, a), a)
	}
	to, err := url.Parse(a.header.Get("Location"))
	if err == nil && (to.Scheme == "http" || to.Scheme == "https") && checkHost(to) == nil && to.User == nil && len(to.Host) < 100 {
		m.says = fmt.Sprintf("{host} sends requests for {bucket} to %s://%s: if that is the S3 service, write it in --endpoint", to.Scheme, to.Host)
	}
	return e.put(&m, a)
}

// put makes the sentence.
func (e explainer) put(m *meaning, a answer) Problem {
	says := strings.NewReplacer(
		"{bucket}", e.where(), "{name}", e.cfg.Bucket, "{host}", e.host(), "{request}", or(a.operation, "the request"),
	).Replace(m.says)
	switch {
	case a.code != "" && m.class == ClassOther:
		says += fmt.Sprintf(" (%s, status %d)", shortCode(a.code), a.status)
	case a.code != "":
		says += fmt.Sprintf(" (%s)", shortCode(a.code))
	case a.status != 0:
		says += fmt.Sprintf(" (status %d)", a.status)
	}
	return Problem{m.class, says, m.temporary}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// notACode matches what no error code contains.
var notACode = lazily(`[^A-Za-z0-9._-]+`)

// shortCode makes a code short and harmless, even when it is not a code at all.
func shortCode(s string) string {
	s = strings.Trim(notACode().ReplaceAllString(s[:min(len(s), 300)], " "), " ")
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	return s
}

// errNotS3 marks an answer that looks like a success but does not come from an S3 service.
var errNotS3 = errors.New("the answer is not one of an S3 service")
