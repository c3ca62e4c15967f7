// What passkeys need of a page: it asks the server what the device shall sign or make,
// hands that to the device, and sends what the device answers as the page's form.
"use strict";
(() => {
  const toBytes = (s) => Uint8Array.from(atob(s.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const toText = (b) => b && btoa(String.fromCharCode(...new Uint8Array(b))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  const named = (list) => (list || []).map((c) => ({ ...c, id: toBytes(c.id) }));
  const trouble = (text) => { document.getElementById("trouble").textContent = text; };

  const begin = async (form) => {
    const resp = await fetch(form.dataset.begin, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    const said = await resp.json();
    if (!resp.ok) throw new Error(said.error);
    return said;
  };

  const send = (form, attempt, c, response) => {
    form.elements.attempt.value = attempt;
    form.elements.answer.value = JSON.stringify({
      id: c.id, rawId: toText(c.rawId), type: c.type, response,
      authenticatorAttachment: c.authenticatorAttachment || undefined, clientExtensionResults: c.getClientExtensionResults(),
    });
    form.submit();
  };

  const signIn = async (form) => {
    const said = await begin(form), o = said.options;
    const c = await navigator.credentials.get({ publicKey: { ...o, challenge: toBytes(o.challenge), allowCredentials: named(o.allowCredentials) } });
    const r = c.response;
    send(form, said.attempt, c, {
      clientDataJSON: toText(r.clientDataJSON), authenticatorData: toText(r.authenticatorData), signature: toText(r.signature), userHandle: toText(r.userHandle),
    });
  };

  const make = async (form) => {
    const said = await begin(form), o = said.options; // anew: time has passed since the page came
    const c = await navigator.credentials.create({
      publicKey: { ...o, challenge: toBytes(o.challenge), user: { ...o.user, id: toBytes(o.user.id) }, excludeCredentials: named(o.excludeCredentials) },
    });
    const r = c.response;
    send(form, said.attempt, c, {
      clientDataJSON: toText(r.clientDataJSON), attestationObject: toText(r.attestationObject), transports: r.getTransports ? r.getTransports() : [],
    });
  };

  const why = (e) => e.name === "InvalidStateError" ? "This device has a passkey of yours already."
    : e.name === "NotAllowedError" ? "The device did not do it: it was cancelled, took too long, or has no passkey for this server."
      : e.message;

  const ready = (form, act) => {
    form.addEventListener("submit", async (e) => {
      e.preventDefault();
      trouble("");
      const button = form.querySelector("button");
      button.disabled = true;
      try { await act(form); } catch (err) { trouble(why(err)); } finally { button.disabled = false; }
    });
    form.hidden = false;
  };

  const start = async () => {
    const login = document.getElementById("sign-in"), add = document.getElementById("make");
    if (!window.PublicKeyCredential) return trouble("This browser knows no passkeys.");
    if (login) ready(login, signIn);
    if (!add) return;
    add.elements.link.value = location.hash.slice(1);
    try {
      const said = await begin(add);
      document.getElementById("user").textContent = said.user;
      document.getElementById("passkey").textContent = said.name;
      ready(add, make);
    } catch (err) { trouble(why(err)); }
  };
  start();
})();
