package storage

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A redirect to the same host keeps a request as it is. Another host does not get the
// session token of temporary keys. What would turn an upload into a download is not
// followed.
func TestRedirects(t *testing.T) {
	var got http.Header
	arrived := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	other := httptest.NewServer(arrived)
	defer other.Close()
	var status int
	var to string
	mux := http.NewServeMux()
	mux.Handle("/there", arrived)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", to)
		w.WriteHeader(status)
	})
	here := httptest.NewServer(mux)
	defer here.Close()
	for name, c := range map[string]struct {
		status  int
		to      string
		follows bool
		token   bool // arrives
	}{
		"the same host":           {http.StatusTemporaryRedirect, here.URL + "/there", true, true},
		"for good":                {http.StatusPermanentRedirect, here.URL + "/there", true, true},
		"another host":            {http.StatusTemporaryRedirect, other.URL + "/there", true, false},
		"another host, for good":  {http.StatusPermanentRedirect, other.URL + "/there", true, false},
		"an upload to a download": {http.StatusFound, here.URL + "/there", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			status, to, got = c.status, c.to, nil
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, here.URL+"/", strings.NewReader("a file"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Amz-Security-Token", "made-up-token")
			client := newTransport().client()
			defer client.CloseIdleConnections()
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if follows := got != nil; follows != c.follows {
				t.Fatalf("followed: %v", follows)
			}
			if token := got.Get("X-Amz-Security-Token") != ""; token != c.token {
				t.Errorf("the token arrived: %v", token)
			}
		})
	}
}
