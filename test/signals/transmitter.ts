import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { exportJWK, generateKeyPair, SignJWT, UnsecuredJWT, type CryptoKey, type JWTPayload } from 'jose';

export interface Transmitter {
  issuer: string;
  audience: string;
  /** A token as the standard wants it, changed where a test says so. */
  set(events: Record<string, unknown>, change?: SetChange): Promise<string>;
  unsigned(events: Record<string, unknown>): string;
  stop(): Promise<void>;
}

export interface SetChange {
  claims?: JWTPayload;
  header?: Record<string, unknown>;
  key?: CryptoKey | Uint8Array;
}

export const caep = (name: string) => `https://schemas.openid.net/secevent/caep/event-type/${name}`;
export const risc = (name: string) => `https://schemas.openid.net/secevent/risc/event-type/${name}`;
export const ssf = (name: string) => `https://schemas.openid.net/secevent/ssf/event-type/${name}`;

/** An identity provider that publishes its keys by SSF discovery. It pushes nothing by itself: tests post what it signs. */
export async function startTransmitter(): Promise<Transmitter> {
  const { publicKey, privateKey } = await generateKeyPair('ES256', { extractable: true });
  const jwk = { ...(await exportJWK(publicKey)), kid: 'one', use: 'sig' };
  const server = createServer((request, response) => {
    const body =
      request.url === '/.well-known/ssf-configuration'
        ? { issuer, jwks_uri: `${issuer}/keys` }
        : request.url === '/keys'
          ? { keys: [jwk] }
          : undefined;
    response.writeHead(body === undefined ? 404 : 200, { 'content-type': 'application/json' });
    response.end(JSON.stringify(body ?? {}));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const audience = 'https://leasehold.test/ssf';
  const claimsOf = (events: Record<string, unknown>): JWTPayload => ({
    iss: issuer,
    aud: audience,
    jti: crypto.randomUUID(),
    iat: Math.floor(Date.now() / 1_000),
    events,
  });
  return {
    issuer,
    audience,
    set: async (events, { claims = {}, header = {}, key = privateKey } = {}) =>
      await new SignJWT({ ...claimsOf(events), ...claims })
        .setProtectedHeader({ alg: 'ES256', kid: 'one', typ: 'secevent+jwt', ...header })
        .sign(key),
    unsigned: (events) => new UnsecuredJWT(claimsOf(events)).encode(),
    stop: async () => {
      server.close();
      server.closeAllConnections();
      await once(server, 'close');
    },
  };
}
