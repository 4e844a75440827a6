import { generateKeyPairSync } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { SignJWT } from 'jose';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createVaultClient, type VaultClient } from '../../src/providers/vault/client.ts';
import { createSession, type VaultLogin } from '../../src/providers/vault/login.ts';
import { createTestCa } from '../support/bundle-certificates.ts';
import { describeVault, startVault, type TestVault } from '../support/vault.ts';
import { prepareLeasehold } from './estate.ts';

/** Point 3 of the Vault issue: each way for the broker to log in, at a real Vault with TLS. */
describeVault('the broker’s own login', () => {
  let vault: TestVault;
  let dir: string;
  let client: VaultClient;
  let cluster: Server;
  let ids: { roleId: string; secretId: string };
  const said: string[] = [];
  const keys = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const clientCa = createTestCa();
  const clientCert = clientCa.issue(['leasehold.acme.test']);
  const token = (audience: string, life = '5m') =>
    new SignJWT({})
      .setProtectedHeader({ alg: 'ES256' })
      .setSubject('spiffe://acme.test/leasehold')
      .setAudience(audience)
      .setIssuer('https://acme.test')
      .setIssuedAt()
      .setExpirationTime(life)
      .sign(keys.privateKey);

  beforeAll(async () => {
    vault = await startVault({ tls: true });
    dir = await mkdtemp(path.join(tmpdir(), 'leasehold-logins-'));
    ids = await prepareLeasehold(vault);
    const publicKey = keys.publicKey.export({ type: 'spki', format: 'pem' }).toString();
    await vault.root('POST', 'sys/auth/jwt', { type: 'jwt' });
    await vault.root('POST', 'auth/jwt/config', { jwt_validation_pubkeys: [publicKey] });
    await vault.root('POST', 'auth/jwt/role/leasehold', {
      role_type: 'jwt',
      user_claim: 'sub',
      bound_audiences: ['vault'],
      bound_subject: 'spiffe://acme.test/leasehold',
      token_policies: ['leasehold-broker'],
      token_ttl: '30s',
      token_max_ttl: '60s',
    });
    await vault.root('POST', 'sys/auth/cert', { type: 'cert' });
    await vault.root('POST', 'auth/cert/certs/leasehold', {
      certificate: clientCa.certificate,
      token_policies: ['leasehold-broker'],
    });
    // The API server of a cluster, as far as Vault asks it: a review of the token that was shown.
    cluster = createServer((request, response) => {
      let body = '';
      request.on('data', (chunk) => (body += chunk));
      request.on('end', () => {
        const shown = (JSON.parse(body) as { spec: { token: string } }).spec.token;
        const authenticated = shown === podToken;
        const user = { username: 'system:serviceaccount:leasehold:leasehold', uid: 'u-1', groups: [] };
        const status = authenticated ? { authenticated, user } : { authenticated, error: 'unknown' };
        response.writeHead(201, { 'content-type': 'application/json' });
        response.end(JSON.stringify({ apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview', status }));
      });
    });
    await new Promise<void>((resolve) => cluster.listen(0, '127.0.0.1', resolve));
    podToken = await new SignJWT({
      'kubernetes.io': { namespace: 'leasehold', serviceaccount: { name: 'leasehold', uid: 'u-1' } },
    })
      .setProtectedHeader({ alg: 'ES256' })
      .setSubject('system:serviceaccount:leasehold:leasehold')
      .setIssuer('kubernetes')
      .setIssuedAt()
      .setExpirationTime('5m')
      .sign(keys.privateKey);
    await vault.root('POST', 'sys/auth/kubernetes', { type: 'kubernetes' });
    await vault.root('POST', 'auth/kubernetes/config', {
      kubernetes_host: `http://127.0.0.1:${(cluster.address() as AddressInfo).port}`,
      kubernetes_ca_cert: clientCa.certificate,
      disable_iss_validation: true,
    });
    await vault.root('POST', 'auth/kubernetes/role/leasehold', {
      bound_service_account_names: ['leasehold'],
      bound_service_account_namespaces: ['leasehold'],
      token_policies: ['leasehold-broker'],
    });
    const ca = await readFile(vault.caFile!, 'utf8');
    client = await createVaultClient({
      address: vault.address,
      tls: () => ({ ca, ...clientCert }),
      connections: { issue: 2, settle: 2 },
      timeout: 5_000,
    });
  });
  let podToken = '';
  afterAll(async () => {
    client?.close();
    cluster?.closeAllConnections();
    await new Promise((resolve) => cluster?.close(resolve));
    await vault?.remove();
    await rm(dir, { recursive: true, force: true });
  });

  const session = (login: VaultLogin) =>
    createSession(
      client,
      login,
      { now: Date.now },
      {
        loggedIn: (method) => said.push(`in by ${method}`),
        failed: (error) => said.push(`failed: ${(error as Error).message}`),
      },
    );
  const lookUp = (of: ReturnType<typeof session>) =>
    of.call({ method: 'GET', path: 'auth/token/lookup-self', lane: 'settle', signal: AbortSignal.timeout(5_000) });
  const dataOf = async (of: ReturnType<typeof session>) =>
    (await lookUp(of)).body['data'] as { policies: string[]; accessor: string; path: string };
  const end = (accessor: string) => vault.root('POST', 'auth/token/revoke-accessor', { accessor });

  test('by approle, a JWT, Kubernetes, a client certificate: each has the broker’s policy', async () => {
    const jwt = await token('vault');
    const logins: VaultLogin[] = [
      { method: 'approle', mount: 'approle', roleId: () => ids.roleId, secretId: () => ids.secretId },
      { method: 'jwt', mount: 'jwt', role: 'leasehold', jwt: () => jwt },
      { method: 'kubernetes', mount: 'kubernetes', role: 'leasehold', jwt: () => podToken },
      { method: 'cert', mount: 'cert', role: 'leasehold' },
    ];
    for (const login of logins) {
      const { policies, path: by } = await dataOf(session(login));
      expect(policies, login.method).toContain('leasehold-broker');
      expect(by).toContain(login.method);
    }
  });

  test('by a token in a file, which counts as soon as it is replaced', async () => {
    const file = path.join(dir, 'token');
    const make = async () => {
      const { status, json } = await vault.request({
        method: 'POST',
        path: 'auth/token/create',
        token: vault.rootToken,
        body: { policies: ['leasehold-broker'] },
      });
      expect(status).toBe(200);
      return json['auth'] as { client_token: string; accessor: string };
    };
    const [first, second] = [await make(), await make()];
    await writeFile(file, `${first.client_token}\n`);
    const text = await readFile(file, 'utf8');
    let present = text.trim();
    const it = session({ method: 'tokenFile', token: () => present });
    expect((await dataOf(it)).accessor).toBe(first.accessor);
    present = second.client_token;
    await end(first.accessor);
    // The old one is refused, and the file is read again for that.
    expect((await dataOf(it)).accessor).toBe(second.accessor);
  });

  test('a token that was revoked is replaced by a new login within the call', async () => {
    const it = session({ method: 'approle', mount: 'approle', roleId: () => ids.roleId, secretId: () => ids.secretId });
    const { accessor } = await dataOf(it);
    await end(accessor);
    const next = await dataOf(it);
    expect(next.accessor).not.toBe(accessor);
    expect(it.status()).toMatchObject({ ready: true });
  });

  test('is renewed in time, and made anew before the most that Vault allows', async () => {
    await vault.root('POST', 'auth/approle/role/brief', {
      token_policies: ['leasehold-broker'],
      token_ttl: '3s',
      token_max_ttl: '5s',
    });
    const { role_id: roleId } = await vault.root<{ role_id: string }>('GET', 'auth/approle/role/brief/role-id');
    const made = await vault.root<{ secret_id: string }>('POST', 'auth/approle/role/brief/secret-id');
    const it = session({ method: 'approle', mount: 'approle', roleId: () => roleId, secretId: () => made.secret_id });
    const seen = new Map<string, { first: number; last: number }>();
    const until = Date.now() + 8_000;
    while (Date.now() < until) {
      await it.tick(AbortSignal.timeout(5_000));
      // No call ever meets a dead token.
      const { accessor } = await dataOf(it);
      seen.set(accessor, { first: seen.get(accessor)?.first ?? Date.now(), last: Date.now() });
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    const lives = [...seen.values()].map(({ first, last }) => last - first);
    expect(lives.length).toBeGreaterThanOrEqual(2);
    // Longer than one that is not renewed: 3 s.
    expect(lives[0]).toBeGreaterThan(3_000);
  });

  test('a login that Vault refuses is told in Vault’s words without the proof, and not repeated at once', async () => {
    said.length = 0;
    const proof = await token('somebody-else');
    let asked = 0;
    const it = session({ method: 'jwt', mount: 'jwt', role: 'leasehold', jwt: () => ((asked += 1), proof) });
    for (let n = 0; n < 5; n++) await expect(lookUp(it)).rejects.toThrow();
    expect(asked).toBe(1);
    expect(it.status()).toMatchObject({ ready: false });
    expect(said.join()).toMatch(/aud/);
    expect(said.join()).not.toContain(proof);
  });
});
