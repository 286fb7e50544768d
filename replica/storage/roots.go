package storage

import (
	"crypto/x509"
	"sync"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// fallbackRoots makes TLS verifiable in an image without root certificates, with Mozilla's
// set as of the build. If the system has a set, or SSL_CERT_FILE names one, only that
// counts. Parsing takes a few milliseconds, so only an HTTPS endpoint causes it; Go allows
// it once.
var fallbackRoots = sync.OnceFunc(func() {
	pool := x509.NewCertPool()
	for root := range bundle.Roots() {
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			continue // Go could not use it
		}
		if root.Constraint == nil {
			pool.AddCert(cert)
		} else {
			pool.AddCertWithConstraint(cert, root.Constraint)
		}
	}
	x509.SetFallbackRoots(pool)
})
