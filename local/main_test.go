package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheDemo(t *testing.T) {
	_ = newProof(t)
	var out bytes.Buffer
	err := run(context.Background(), &out, "")
	if lines := strings.Count(out.String(), "\n"); err != nil || lines > 25 { // and make says a few
		t.Errorf("%v after %d lines:\n%s", err, lines, &out)
	}
}

func TestALoginOutsideWindmill(t *testing.T) {
	p, file := newProof(t), filepath.Join(t.TempDir(), "instance.json")
	for _, test := range []struct {
		password, end string
		mode          os.FileMode
		want          string
	}{
		{account.Password, "}", 0o600, "It gave one"},
		{"Wr0ng", "}", 0o600, "answered 401"},
		{account.Password, "}", 0o640, "chmod 600"},
		{"Wr0ng", "", 0o600, "must hold a JSON object"},
		{"$var:Wr0ng", "}", 0o600, "must hold a JSON object"},
	} {
		content := fmt.Sprintf(`{"instance_url": %q, "client_id": %q, "client_secret": %q, "username": %q, "password": %q`+test.end,
			p.address, account.ClientID, account.ClientSecret, account.Username, test.password)
		must(os.WriteFile(file, []byte(content), test.mode))
		must(os.Chmod(file, test.mode))
		var out bytes.Buffer
		err := run(context.Background(), &out, file)
		said, isGood := fmt.Sprint(&out, err), test.want == "It gave one"
		if !strings.Contains(said, test.want) || strings.Contains(said, "Wr0ng") || isGood != (err == nil) {
			t.Errorf("it said %s; want %s", said, test.want)
		}
	}
	if n := p.instance.Requests(); n != 2 {
		t.Errorf("%d requests; want 2", n)
	}
}
