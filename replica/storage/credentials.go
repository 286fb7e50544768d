package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// errNoCredentials marks that the SDK's chain found nothing to sign with; the SDK itself
// has no type for it.
var errNoCredentials = errors.New("no credentials")

type credentialSource struct{ aws.CredentialsProvider }

func (s credentialSource) Retrieve(ctx context.Context) (aws.Credentials, error) {
	creds, err := s.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return creds, fmt.Errorf("%w: %w", errNoCredentials, err)
	}
	return creds, nil
}

// IsolateEnvironment removes from this process's environment what would change where our
// requests go or whom they trust. The environment of a container is the app's: its
// AWS_ENDPOINT_URL, AWS_CA_BUNDLE or AWS_REGION are for the app's own use of AWS. With
// explicit keys no AWS variable is left; without, those that the SDK's credential chain
// needs stay. Read the app's environment before.
func IsolateEnvironment(explicitKeys bool) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "LITESTREAM_"):
		case !strings.HasPrefix(name, "AWS_"):
			continue
		case !explicitKeys && credentialVariable(name):
			continue
		}
		_ = os.Unsetenv(name)
	}
	_ = os.Setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
	if explicitKeys {
		_ = os.Setenv("AWS_CONFIG_FILE", os.DevNull)
		_ = os.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	}
}

// credentialVariable reports whether the SDK's chain may use the variable to find
// credentials.
func credentialVariable(name string) bool {
	switch name {
	case "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
		"AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE":
		return true
	}
	return strings.HasPrefix(name, "AWS_CONTAINER_") || strings.HasPrefix(name, "AWS_EC2_METADATA_")
}
