package flapstest

import (
	"bytes"
	"net/http"
	"strings"
)

// secrets sets, lists and unsets secrets, and makes and uses a secret key.
func (l *life) secrets() {
	t, one, two := l.t, "one", "two"
	set, err := l.f.SetAppSecret(l.ctx, l.c.App, "FLAPS_SECRET", one)
	must(t, "set a secret", err)
	up, err := l.f.UpdateAppSecrets(l.ctx, l.c.App, map[string]*string{"FLAPS_OTHER": &two, "FLAPS_NONE": nil})
	must(t, "update secrets", err)
	if up.Version <= set.Version || len(up.Secrets) != 2 {
		t.Fatalf("update of secrets gave %+v after version %d", up, set.Version)
	}
	list, err := l.f.ListAppSecrets(l.ctx, l.c.App, &up.Version, false)
	must(t, "list secrets", err)
	if len(list) != 2 || list[0].Name != "FLAPS_OTHER" || list[0].Digest == "" || list[0].Value != nil {
		t.Fatalf("list of secrets: %+v", list)
	}
	if _, err := l.f.ListAppSecrets(l.ctx, l.c.App, nil, true); !isCode(err, http.StatusForbidden) {
		t.Fatalf("show_secrets: %v, want 403", err)
	}
	got, err := l.f.GetAppSecrets(l.ctx, l.c.App, "FLAPS_SECRET", nil, false)
	must(t, "get a secret", err)
	if got.Digest != set.Digest {
		t.Fatalf("get of a secret: %+v", got)
	}
	_, err = l.f.DeleteAppSecret(l.ctx, l.c.App, "FLAPS_OTHER")
	must(t, "delete a secret", err)
	l.secretKeys()
}

func (l *life) secretKeys() {
	t, app := l.t, l.c.App
	key, err := l.f.GenerateSecretKey(l.ctx, app, "flaps", "xaes256gcm")
	must(t, "generate a secret key", err)
	if key.Type != "xaes256gcm" || key.Version == 0 {
		t.Fatalf("generate gave %+v", key)
	}
	enc, err := l.f.EncryptSecretKey(l.ctx, app, "flaps", []byte("plain"), []byte("ad"), nil)
	must(t, "encrypt", err)
	dec, err := l.f.DecryptSecretKey(l.ctx, app, "flaps", enc.Ciphertext, []byte("ad"), nil)
	must(t, "decrypt", err)
	if string(dec.Plaintext) != "plain" {
		t.Fatalf("decrypt gave %q", dec.Plaintext)
	}
	if _, err := l.f.DecryptSecretKey(l.ctx, app, "flaps", enc.Ciphertext, []byte("other"), nil); !isCode(err, http.StatusBadRequest) {
		t.Fatalf("decrypt with other data: %v, want 400", err)
	}
	_, err = l.f.SetSecretKey(l.ctx, app, "signer", "nacl_sign", bytes.Repeat([]byte{7}, 32))
	must(t, "set a secret key", err)
	sig, err := l.f.SignSecretKey(l.ctx, app, "signer", []byte("text"), nil)
	must(t, "sign", err)
	must(t, "verify", l.f.VerifySecretKey(l.ctx, app, "signer", []byte("text"), sig.Signature, nil))
	if err := l.f.VerifySecretKey(l.ctx, app, "signer", []byte("other"), sig.Signature, nil); !isCode(err, http.StatusBadRequest) {
		t.Fatalf("verify of another text: %v, want 400", err)
	}
	one, err := l.f.GetSecretKey(l.ctx, app, "signer", nil)
	must(t, "get a secret key", err)
	if len(one.Publickey) != 32 {
		t.Fatalf("get of a secret key: %+v", one)
	}
	must(t, "delete a secret key", l.f.DeleteSecretKey(l.ctx, app, "flaps"))
	keys, err := l.f.ListSecretKeys(l.ctx, app, nil)
	must(t, "list secret keys", err)
	if len(keys) != 1 || keys[0].Name != "signer" || !strings.HasPrefix(keys[0].Type, "nacl") {
		t.Fatalf("list of secret keys: %+v", keys)
	}
}
