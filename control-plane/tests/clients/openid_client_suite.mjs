// Drives the OAuth endpoints with openid-client, as a Node service would.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import path from 'node:path'
import test from 'node:test'
import { pathToFileURL } from 'node:url'

const { ATM_ISSUER: issuer, ATM_ADMIN_URL: adminUrl, ATM_ADMIN_TOKEN: adminToken, ATM_NODE_MODULES: modules } = process.env
const find = createRequire(path.join(modules, 'resolve.js'))
const load = (name) => import(pathToFileURL(find.resolve(name)).href)
const oidc = await load('openid-client')
const jose = await load('jose')

const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange'
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token'

async function admin(method, resource, body) {
  const response = await fetch(`${adminUrl}/admin/v1${resource}`, {
    method,
    headers: { authorization: `Bearer ${adminToken}`, 'content-type': 'application/json' },
    body: body && JSON.stringify(body),
  })
  const text = await response.text()
  assert.ok(response.ok, text)
  return text ? JSON.parse(text) : undefined
}

const register = (members) =>
  admin('POST', '/clients', { scopes: ['orders.read', 'orders.write'], audiences: ['orders-api'], ...members })

const discover = (client, authentication, algorithm = 'oauth2') =>
  oidc.discovery(new URL(issuer), client.client_id, undefined, authentication, {
    algorithm,
    execute: [oidc.allowInsecureRequests],
  })

const bySecret = (client) => discover(client, oidc.ClientSecretBasic(client.client_secret))

test('both forms of discovery name this issuer', async () => {
  const client = await register({})
  for (const algorithm of ['oauth2', 'oidc']) {
    const config = await discover(client, oidc.ClientSecretPost(client.client_secret), algorithm)
    assert.equal(config.serverMetadata().issuer, issuer)
    const token = await oidc.clientCredentialsGrant(config, { scope: 'orders.read' })
    assert.equal(token.scope, 'orders.read')
    const keys = jose.createRemoteJWKSet(new URL(config.serverMetadata().jwks_uri))
    const { payload } = await jose.jwtVerify(token.access_token, keys, { issuer, audience: 'orders-api', typ: 'at+jwt' })
    assert.equal(payload.client_id, client.client_id)
  }
})

test('an assertion authenticates (private_key_jwt)', async () => {
  const { privateKey, publicKey } = await jose.generateKeyPair('ES256', { extractable: true })
  const jwk = { ...(await jose.exportJWK(publicKey)), kid: 'k1', alg: 'ES256' }
  const client = await register({ token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [jwk] } })
  const config = await discover(client, oidc.PrivateKeyJwt({ key: privateKey, kid: 'k1' }))
  for (let times = 0; times < 2; times++) {
    assert.equal((await oidc.clientCredentialsGrant(config)).token_type, 'bearer')
  }
})

test('a DPoP key binds the token, over the nonce', async () => {
  const config = await bySecret(await register({ dpop_bound_access_tokens: true }))
  const DPoP = oidc.getDPoPHandle(config, await oidc.randomDPoPKeyPair('ES256'))
  for (let times = 0; times < 2; times++) {
    const token = await oidc.clientCredentialsGrant(config, undefined, { DPoP })
    assert.equal(token.token_type, 'dpop')
    assert.ok(jose.decodeJwt(token.access_token).cnf.jkt)
  }
})

test('a public client refreshes what the login service opened, bound to its key', async () => {
  const client = await register({ token_endpoint_auth_method: 'none', grant_types: ['refresh_token'] })
  const config = await discover(client, oidc.None())
  const keys = await oidc.randomDPoPKeyPair('ES256', { extractable: true })
  const jkt = await jose.calculateJwkThumbprint(await jose.exportJWK(keys.publicKey))
  const opened = await admin('POST', '/sessions', { subject: 'alice', client_id: client.client_id, dpop_jkt: jkt })
  const DPoP = oidc.getDPoPHandle(config, keys)
  const first = await oidc.refreshTokenGrant(config, opened.refresh_token, undefined, { DPoP })
  assert.equal(jose.decodeJwt(first.access_token).sub, 'alice')
  const second = await oidc.refreshTokenGrant(config, first.refresh_token, undefined, { DPoP })
  assert.notEqual(second.refresh_token, first.refresh_token)
  await assert.rejects(oidc.refreshTokenGrant(config, opened.refresh_token, undefined, { DPoP }), { error: 'invalid_grant' })
  await assert.rejects(oidc.refreshTokenGrant(config, second.refresh_token, undefined, { DPoP }), { error: 'invalid_grant' })
})

test('introspection and revocation', async () => {
  const config = await bySecret(await register({ access_token_format: 'opaque' }))
  const { access_token: token } = await oidc.clientCredentialsGrant(config)
  assert.equal((await oidc.tokenIntrospection(config, token)).active, true)
  await oidc.tokenRevocation(config, token)
  assert.deepEqual(await oidc.tokenIntrospection(config, token), { active: false })
})

test('signed introspection (RFC 9701)', async () => {
  const client = await register({})
  const config = await bySecret(client)
  const { access_token: token } = await oidc.clientCredentialsGrant(config)
  const response = await fetch(config.serverMetadata().introspection_endpoint, {
    method: 'POST',
    headers: {
      accept: 'application/token-introspection+jwt',
      authorization: `Basic ${btoa(`${client.client_id}:${client.client_secret}`)}`,
    },
    body: new URLSearchParams({ token }),
  })
  const keys = jose.createRemoteJWKSet(new URL(config.serverMetadata().jwks_uri))
  const { payload } = await jose.jwtVerify(await response.text(), keys, {
    issuer, audience: client.client_id, typ: 'token-introspection+jwt',
  })
  assert.equal(payload.token_introspection.active, true)
})

test('token exchange names the actor', async () => {
  const app = await register({})
  const gateway = await register({
    grant_types: ['client_credentials', EXCHANGE], exchange: { delegation: true, impersonation: true },
  })
  const { access_token: subject_token } = await oidc.clientCredentialsGrant(await bySecret(app))
  const config = await bySecret(gateway)
  const { access_token: actor_token } = await oidc.clientCredentialsGrant(config)
  const token = await oidc.genericGrantRequest(config, EXCHANGE, {
    subject_token, subject_token_type: ACCESS_TOKEN, actor_token, actor_token_type: ACCESS_TOKEN,
  })
  assert.equal(token.issued_token_type, ACCESS_TOKEN)
  const claims = jose.decodeJwt(token.access_token)
  assert.deepEqual([claims.sub, claims.act.sub], [app.client_id, gateway.client_id])
})

test('errors are those of the specification', async () => {
  const client = await register({})
  const wrong = await discover(client, oidc.ClientSecretBasic('wrong'))
  await assert.rejects(oidc.clientCredentialsGrant(wrong), (error) => {
    // openid-client shows a 401 by its challenge.
    return error.error === 'invalid_client' || error.cause?.[0]?.scheme === 'basic'
  })
  const config = await bySecret(client)
  await assert.rejects(oidc.clientCredentialsGrant(config, { scope: 'admin' }), { error: 'invalid_scope' })
  await assert.rejects(oidc.clientCredentialsGrant(config, { resource: 'https://other.example' }), { error: 'invalid_target' })
})
