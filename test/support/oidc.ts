import { createHash, createPrivateKey, generateKeyPairSync, randomBytes } from 'node:crypto';
import type { JsonWebKeyInput, KeyObject } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import type { RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Provider } from 'oidc-provider';

export interface TestOidcProvider {
  issuer: string;
  jwksUri: string;
  /** A JWT access token by the client credentials grant, for one resource (RFC 8707). */
  accessToken(resource: string): Promise<string>;
  /** An ID token by the authorization code flow, with somebody who logs in and consents. */
  idToken(login: string): Promise<string>;
  /** The key that signs now, for forging what a provider would not issue. */
  signingKey(): { kid: string; privateKey: KeyObject };
  rotate(options?: { keepOld?: boolean }): void;
  /** Answers for every path from now on, in place of the provider; undefined gives the floor back to it. */
  intercept(listener: RequestListener | undefined): void;
  requests(): number;
  close(): Promise<void>;
}

export interface TestOidcOptions {
  algorithm?: 'RS256' | 'ES256';
  /** Further claims of every access token. */
  claims?: Record<string, unknown>;
  ttlSeconds?: number;
}

/** Client id of access tokens, hence their `sub`; also the audience of ID tokens. */
export const testClientId = 'ci-runner';
const clientSecret = 'only-a-test';
const redirectUri = 'https://client.test/done';

type Jwk = Record<string, string>;

/** A real OpenID Connect provider on loopback. */
export async function startOidcProvider(options: TestOidcOptions = {}): Promise<TestOidcProvider> {
  const { algorithm = 'ES256' } = options;
  let keys = [newKey(algorithm)];
  let listener: RequestListener;
  let intercepting: RequestListener | undefined;
  let requests = 0;
  const server = http.createServer((request, response) => {
    requests += 1;
    (intercepting ?? listener)(request, response);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const restart = () => {
    listener = quietly(() => new Provider(issuer, configuration(keys, algorithm, options)).callback());
  };
  restart();

  return {
    issuer,
    jwksUri: `${issuer}/jwks`,
    accessToken: async (resource) =>
      (await token(issuer, { grant_type: 'client_credentials', resource, scope: 'call' }))['access_token']!,
    idToken: async (login) => (await token(issuer, await authorize(issuer, login)))['id_token']!,
    signingKey: () => ({
      kid: keys[0]!['kid']!,
      privateKey: createPrivateKey({ key: keys[0], format: 'jwk' } as JsonWebKeyInput),
    }),
    rotate({ keepOld = false } = {}) {
      keys = [newKey(algorithm), ...(keepOld ? keys : [])];
      restart();
    },
    intercept(next) {
      intercepting = next;
    },
    requests: () => requests,
    async close() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}

/** It warns, each time anew, that it is set up for a test. */
function quietly<T>(work: () => T): T {
  const { info, warn } = console;
  Object.assign(console, { info: () => undefined, warn: () => undefined });
  try {
    return work();
  } finally {
    Object.assign(console, { info, warn });
  }
}

function configuration(keys: Jwk[], alg: string, { claims = {}, ttlSeconds = 300 }: TestOidcOptions) {
  return {
    jwks: { keys },
    clients: [
      {
        client_id: testClientId,
        client_secret: clientSecret,
        token_endpoint_auth_method: 'client_secret_post',
        grant_types: ['client_credentials', 'authorization_code'],
        response_types: ['code'],
        redirect_uris: [redirectUri],
        id_token_signed_response_alg: alg,
      },
    ],
    cookies: { keys: [randomBytes(16).toString('hex')] },
    ttl: {
      IdToken: ttlSeconds,
      AccessToken: ttlSeconds,
      ClientCredentials: ttlSeconds,
      Interaction: 300,
      Session: 300,
      Grant: 300,
    },
    findAccount: (_context: unknown, id: string) => ({ accountId: id, claims: () => ({ sub: id }) }),
    extraTokenClaims: () => claims,
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => [],
        getResourceServerInfo: (_context: unknown, resource: string) => ({
          scope: 'call',
          audience: resource,
          accessTokenTTL: ttlSeconds,
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg } },
        }),
      },
    },
  };
}

function newKey(alg: 'RS256' | 'ES256'): Jwk {
  const { privateKey } =
    alg === 'RS256'
      ? generateKeyPairSync('rsa', { modulusLength: 2048 })
      : generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...(privateKey.export({ format: 'jwk' }) as Jwk), kid: randomBytes(8).toString('hex'), use: 'sig', alg };
}

async function token(issuer: string, form: Record<string, string>): Promise<Record<string, string>> {
  const response = await fetch(`${issuer}/token`, {
    method: 'POST',
    body: new URLSearchParams({ client_id: testClientId, client_secret: clientSecret, ...form }),
  });
  if (!response.ok) throw new Error(`token endpoint: ${response.status} ${await response.text()}`);
  return (await response.json()) as Record<string, string>;
}

/** Plays the browser: follows the redirects with a cookie jar and fills in the provider's two forms. */
async function authorize(issuer: string, login: string): Promise<Record<string, string>> {
  const verifier = randomBytes(32).toString('base64url');
  const cookies = new Map<string, string>();
  const go = async (url: string, body?: URLSearchParams): Promise<Response> => {
    const response = await fetch(url, {
      redirect: 'manual',
      headers: { cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join('; ') },
      ...(body === undefined ? {} : { method: 'POST', body }),
    });
    for (const cookie of response.headers.getSetCookie()) {
      const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(cookie) ?? [];
      cookies.set(name, value);
    }
    return response;
  };
  const query = new URLSearchParams({
    client_id: testClientId,
    response_type: 'code',
    scope: 'openid',
    redirect_uri: redirectUri,
    code_challenge: createHash('sha256').update(verifier).digest('base64url'),
    code_challenge_method: 'S256',
  });
  let response = await go(`${issuer}/auth?${query}`);
  for (let step = 0; step < 12; step++) {
    const location = response.headers.get('location');
    if (location?.startsWith(redirectUri)) {
      const code = new URL(location).searchParams.get('code');
      if (code === null) throw new Error(`authorization failed: ${location}`);
      return { grant_type: 'authorization_code', code, redirect_uri: redirectUri, code_verifier: verifier };
    }
    if (location !== null) response = await go(new URL(location, issuer).href);
    else {
      const page = await response.text();
      const [, action = ''] = /<form[^>]*action="([^"]+)"/.exec(page) ?? [];
      const prompt = page.includes('name="login"') ? 'login' : 'consent';
      response = await go(new URL(action, issuer).href, new URLSearchParams({ prompt, login, password: 'any' }));
    }
  }
  throw new Error('authorization did not end');
}
