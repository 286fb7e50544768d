package storage

import "testing"

func TestParseEndpoint(t *testing.T) {
	for in, want := range map[string]Endpoint{
		"":                                              {},
		"s3.amazonaws.com":                              {},
		"s3.us-east-1.amazonaws.com":                    {Region: "us-east-1"},
		"https://s3.eu-central-1.amazonaws.com/":        {Region: "eu-central-1"},
		"s3-us-west-2.amazonaws.com":                    {Region: "us-west-2"},
		"pics.s3.us-gov-west-1.amazonaws.com":           {Region: "us-gov-west-1"},
		"s3.dualstack.eu-west-1.amazonaws.com":          {URL: "https://s3.dualstack.eu-west-1.amazonaws.com", Region: "eu-west-1"},
		"s3.cn-north-1.amazonaws.com.cn":                {URL: "https://s3.cn-north-1.amazonaws.com.cn", Region: "cn-north-1"},
		"https://ACCOUNT.r2.cloudflarestorage.com":      {URL: "https://account.r2.cloudflarestorage.com", Region: "auto"},
		"https://account.r2.cloudflarestorage.com/pics": {URL: "https://account.r2.cloudflarestorage.com", Region: "auto"},
		"fra1.digitaloceanspaces.com":                   {URL: "https://fra1.digitaloceanspaces.com", Region: "fra1"},
		"https://pics.fra1.digitaloceanspaces.com":      {URL: "https://fra1.digitaloceanspaces.com", Region: "fra1"},
		"s3.us-west-004.backblazeb2.com":                {URL: "https://s3.us-west-004.backblazeb2.com", Region: "us-west-004"},
		"fsn1.your-objectstorage.com":                   {URL: "https://fsn1.your-objectstorage.com", Region: "fsn1"},
		"t3.storage.dev":                                {URL: "https://t3.storage.dev", Region: "auto"},
		"http://127.0.0.1:9000":                         {URL: "http://127.0.0.1:9000"},
		"127.0.0.1:9000":                                {URL: "http://127.0.0.1:9000"},
		"http://[::1]:9000":                             {URL: "http://[::1]:9000"},
		"minio.example.com:9000":                        {URL: "https://minio.example.com:9000"},
		"minio:9000":                                    {URL: "https://minio:9000"},
		"HTTP://MinIO.Example.com":                      {URL: "http://minio.example.com"},
		"pics.example.com":                              {URL: "https://pics.example.com"},
		"file:///backups":                               {Dir: "/backups"},
		"file:///backups/shop/":                         {Dir: "/backups/shop"},
		"FILE:///backups":                               {Dir: "/backups"},
	} {
		if got, err := ParseEndpoint(in, "pics"); err != nil || got != want {
			t.Errorf("%q is %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestParseEndpointRefuses(t *testing.T) {
	for _, in := range []string{
		"https://", "http:///x", "ftp://example.com", "s3://bucket", "example.com/folder", "https://a b.example.com",
		"https://example.com\n", "https://me:word@example.com", "https://example.com?x=1", "https://example.com#x",
		"https://example.com:0", "https://example.com:70000", "https://example.com:", "https://-x.example.com", "https://exa$mple.com",
		"file://backups", "file://", "file:///", "file:///a?b", "https://%zz", "//example.com", "https://.",
	} {
		if got, err := ParseEndpoint(in, "pics"); err == nil {
			t.Errorf("%q is accepted as %+v", in, got)
		}
	}
}

func FuzzParseEndpoint(f *testing.F) {
	f.Add("https://example.com:9000/x", "x")
	f.Add("file:///a/../b", "")
	f.Fuzz(func(t *testing.T, s, bucket string) {
		e, err := ParseEndpoint(s, bucket)
		if err != nil {
			return
		}
		// What was accepted is accepted again as it was understood.
		if again, err := ParseEndpoint(e.URL, ""); e.URL != "" && (err != nil || again.URL != e.URL) {
			t.Errorf("%q became %q, and that %+v, %v", s, e.URL, again, err)
		}
	})
}
