import { randomUUID } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { decodeJwt } from 'jose';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Effect, SenderConstraint, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { createVerifier, type TokenRefused } from '../../src/verifier/index.ts';
import { runCli } from '../cli/run-cli.ts';
import {
  held,
  openTask,
  parties,
  prepareEstate,
  refusal,
  reportsRead,
  sql,
  tokenOf,
  warehouseRead,
  type Served,
} from '../e2e/support.ts';
import { startInProcess } from '../support/broker.ts';
import { issueUrl, newHolder, proofOf } from './support.ts';

const sealed = { tool: 'sealed', tier: Tier.READ };
const certified = { tool: 'sealed', tier: Tier.WRITE };
const policy = `
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: sealed, owner: o }
spec:
  resource: https://sealed.test
  tiers:
    read: { provider: jwt, revocation: immediate, ttl: { min: 1s, default: 1m, max: 5m } }
    write: { provider: jwt, revocation: immediate, ttl: { min: 1s, default: 1m, max: 5m } }
---
apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: sealed, owner: o }
spec:
  rules:
    - { name: read, agents: [analyst], tools: [sealed], tiers: [read], effect: allow, obligations: { senderConstraint: dpop } }
    - { name: write, agents: [analyst], tools: [sealed], tiers: [write], effect: allow, obligations: { senderConstraint: mtls } }
`;

let served: Served;
let dir: string;
let url: string;
const holder = newHolder();

beforeAll(async () => {
  const estate = await prepareEstate('dpop');
  await writeFile(path.join(estate.policyDir, 'sealed.yaml'), policy);
  const broker = await startInProcess(estate);
  served = {
    estate,
    ...parties(estate),
    stop: async () => {
      await broker.stop(500);
      await estate.remove();
    },
  };
  url = estate.httpUrl;
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-dpop-'));
});
afterAll(async () => {
  await served?.stop();
  await rm(dir, { recursive: true, force: true });
});

const proof = (method?: string, change: Parameters<typeof proofOf>[2] = {}, of = holder) =>
  proofOf(of, issueUrl(url, method), change);
const issued = async (taskId: string, more: object = {}) =>
  held(await served.agent.issueCredential({ taskId, ...sealed, dpopProof: await proof(), ...more }));

describe('a credential that policy wants bound to a key', () => {
  test('is told of in the plan, refused without a proof with what to send, and issued with one', async () => {
    const { taskId, plan } = await openTask(served, [sealed, certified]);
    expect(plan[0]).toMatchObject({ effect: Effect.ALLOW, senderConstraint: SenderConstraint.DPOP });
    expect(await refusal(served.agent.issueCredential({ taskId, ...sealed }))).toMatchObject({
      reason: 'POLICY_DENIED',
      message: expect.stringContaining('send a proof of it as dpop_proof (RFC 9449)'),
    });
    const { credential } = await issued(taskId);
    expect(credential.material).toMatchObject({ case: 'accessToken', value: { tokenType: 'DPoP' } });
    const { cnf } = decodeJwt<{ cnf: { jkt: string } }>(tokenOf({ credential } as never));
    expect(cnf.jkt).toMatch(/^[\w-]{43}$/);
    expect(
      await refusal(served.agent.issueCredential({ taskId, ...certified, dpopProof: await proof() })),
    ).toMatchObject({ reason: 'POLICY_DENIED', message: expect.stringContaining('bind_to_certificate') });
  });

  test('is renewed with a proof of the same key, and with nothing else', async () => {
    const { taskId } = await openTask(served, [sealed, reportsRead]);
    const first = await issued(taskId);
    const renew = async (leaseId: string, dpopProof: string) =>
      await served.agent.renewCredential({ leaseId, dpopProof });
    const { leaseId } = first.lease;
    const other = { reason: 'FIELD_INVALID', fields: ['dpop_proof'] };
    expect(await refusal(renew(leaseId, ''))).toMatchObject(other);
    expect(await refusal(renew(leaseId, await proof('RenewCredential', {}, newHolder())))).toMatchObject(other);
    expect(await refusal(renew(leaseId, await proof('IssueCredential')))).toMatchObject(other);
    const second = held(await renew(leaseId, await proof('RenewCredential')));
    expect(decodeJwt(tokenOf(second))['cnf']).toEqual(decodeJwt(tokenOf(first))['cnf']);
    // What is bound to no key does not become bound on the way.
    const plain = held(await served.agent.issueCredential({ taskId, ...reportsRead }));
    expect(await refusal(renew(plain.lease.leaseId, await proof('RenewCredential')))).toMatchObject(other);
    const records = await sql(
      served.estate.databaseUrl,
      `SELECT detail FROM leasehold.audit_events WHERE lease_id = $1 AND kind = 'lease.renewed'`,
      [second.lease.leaseId],
    );
    expect(records).toMatchObject([{ detail: { cnf: { jkt: expect.any(String) as string } } }]);
  });

  test('keeps its key in a stream, whose first call proved it', async () => {
    const { taskId } = await openTask(served, [sealed], { ttl: { seconds: 4n } });
    const tokens: string[] = [];
    const stream = served.agent.streamCredential({ taskId, ...sealed, dpopProof: await proof('StreamCredential') });
    for await (const answer of stream) {
      tokens.push(tokenOf(held(answer)));
      if (tokens.length === 2) break;
    }
    expect(new Set(tokens.map((token) => JSON.stringify(decodeJwt(token)['cnf']))).size).toBe(1);
    expect(tokens).toHaveLength(2);
  });

  test('comes again for the same request, also with the same proof; a proof is for no other request', async () => {
    const { taskId } = await openTask(served, [sealed]);
    const requestId = randomUUID();
    const dpopProof = await proof();
    const first = await issued(taskId, { requestId, dpopProof });
    const again = await issued(taskId, { requestId, dpopProof });
    expect(again.lease.leaseId).toBe(first.lease.leaseId);
    expect(await refusal(served.agent.issueCredential({ taskId, ...sealed, dpopProof }))).toMatchObject({
      reason: 'FIELD_INVALID',
      message: expect.stringContaining('was used for another request'),
    });
    const foreign = await proof('IssueCredential', {}, newHolder());
    expect(
      await refusal(served.agent.issueCredential({ taskId, ...sealed, requestId, dpopProof: foreign })),
    ).toMatchObject({ reason: 'REQUEST_ID_REUSED' });
  });

  test.each([
    ['of another URL', { claims: { htu: 'https://elsewhere.test/x' } }, /its htu has to be http/],
    ['that is old', { claims: { iat: Math.floor(Date.now() / 1_000) - 600 } }, /its iat has to be within 60 s/],
    [
      'that gives the private key away',
      { header: { jwk: holder.privateKey.export({ format: 'jwk' }) } },
      /private key/,
    ],
  ])('is not issued on a proof %s', async (_what, change, why) => {
    const { taskId } = await openTask(served, [sealed]);
    const refused = await refusal(
      served.agent.issueCredential({ taskId, ...sealed, dpopProof: await proof('IssueCredential', change) }),
    );
    expect(refused).toMatchObject({ reason: 'FIELD_INVALID', fields: ['dpop_proof'] });
    expect(refused.message).toMatch(why);
  });

  test('is bound where nobody asked for it as well, and a login cannot be', async () => {
    const { taskId } = await openTask(served, [reportsRead, warehouseRead]);
    const bound = held(await served.agent.issueCredential({ taskId, ...reportsRead, dpopProof: await proof() }));
    expect(decodeJwt(tokenOf(bound))['cnf']).toBeDefined();
    expect(
      await refusal(served.agent.issueCredential({ taskId, ...warehouseRead, dpopProof: await proof() })),
    ).toMatchObject({ reason: 'FIELD_INVALID', message: expect.stringContaining('cannot be bound to a key') });
  });
});

describe('the resource server', () => {
  const resource = 'https://sealed.test/rows';
  const verifier = () =>
    createVerifier({
      issuer: url,
      audience: 'https://sealed.test',
      jwks: `${url}/.well-known/jwks.json`,
      feed: 'none',
    });
  const code = async (call: Promise<unknown>) =>
    await call.then(
      () => 'accepted',
      (error: unknown) => (error as TokenRefused).code,
    );

  test('takes a bound token with a proof for this very request, once, and without it never', async () => {
    const { taskId } = await openTask(served, [sealed]);
    const token = tokenOf(await issued(taskId));
    const checks = verifier();
    const made = await proofOf(holder, resource, { method: 'GET', token });
    const present = (sent: string | undefined, method = 'GET', at = resource) =>
      checks.verify(token, { proof: sent, method, url: at });
    expect((await present(made)).boundTo).toBe(decodeJwt<{ cnf: { jkt: string } }>(token).cnf.jkt);
    expect(await code(present(made))).toBe('proof_replayed');
    expect(await code(checks.verify(token))).toBe('proof_missing');
    expect(await code(present(undefined))).toBe('proof_missing');
    const fresh = () => proofOf(holder, resource, { method: 'GET', token });
    expect(await code(present(await fresh(), 'POST'))).toBe('proof_invalid');
    expect(await code(present(await fresh(), 'GET', 'https://sealed.test/other'))).toBe('proof_invalid');
    expect(await code(present(await proofOf(holder, resource, { method: 'GET', token: 'another' })))).toBe(
      'proof_invalid',
    );
    // Who stole the token has not the key.
    expect(await code(present(await proofOf(newHolder(), resource, { method: 'GET', token })))).toBe('proof_invalid');
    expect(await code(present(await fresh()))).toBe('accepted');
  });
});

test('the program makes the proof of a key in a file, and takes no key that others can read', async () => {
  const { taskId } = await openTask(served, [sealed]);
  const token = path.join(dir, 'token');
  const key = path.join(dir, 'key.pem');
  await writeFile(token, await served.estate.mint('agent/analyst'), { mode: 0o600 });
  await writeFile(key, holder.privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 });
  const env = { LEASEHOLD_SERVER: url, LEASEHOLD_TOKEN_FILE: token };
  const cli = (...args: string[]) => runCli(['credential', ...args], env);
  const made = await cli('issue', taskId, '--tool', 'sealed:read', '--dpop-key', key, '--json');
  expect(made).toMatchObject({ code: 0, stderr: '' });
  const { credential } = JSON.parse(made.stdout) as {
    credential: { lease: { leaseId: string }; accessToken: { tokenType: string } };
  };
  expect(credential.accessToken.tokenType).toBe('DPoP');
  const renewed = await cli('renew', credential.lease.leaseId, '--dpop-key', key, '--format', 'token');
  expect(renewed.code).toBe(0);
  expect(decodeJwt(renewed.stdout.trim())['cnf']).toBeDefined();

  const jwk = path.join(dir, 'key.json');
  await writeFile(jwk, JSON.stringify(holder.privateKey.export({ format: 'jwk' })), { mode: 0o644 });
  const open = await cli('issue', taskId, '--tool', 'sealed:read', '--dpop-key', jwk);
  expect(open.code).toBe(2);
  expect(open.stderr).toContain('others can read it');
  expect(open.stderr).not.toContain((holder.privateKey.export({ format: 'jwk' }) as { d: string }).d);
});
