package storage

import (
	"crypto/x509"
	"sync"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// fallbackRoots lets TLS be verified in an image that has no root certificates,
// with Mozilla's set as of the build. Where the system has a set, or SSL_CERT_FILE
// names one, that alone counts. Parsing takes a few milliseconds, so it is done
// only where HTTPS is spoken; Go allows it once.
var fallbackRoots = sync.OnceFunc(func() {
	pool := x509.NewCertPool()
	for root := range bundle.Roots() {
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			continue // one that this Go does not understand verifies nothing
		}
		if root.Constraint == nil {
			pool.AddCert(cert)
		} else {
			pool.AddCertWithConstraint(cert, root.Constraint)
		}
	}
	x509.SetFallbackRoots(pool)
})
