import { readFile, writeFile } from 'node:fs/promises';
import { X509Certificate, createHash } from 'node:crypto';
import { once } from 'node:events';
import type { IncomingMessage } from 'node:http';
import { Agent, get } from 'node:https';
import { json } from 'node:stream/consumers';
import path from 'node:path';
import { createClient } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { credentials } from '@grpc/grpc-js';
import { decodeJwt, type JSONWebKeySet } from 'jose';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { createVerifier } from '../../src/verifier/index.ts';
import { runCli } from '../cli/run-cli.ts';
import { held, refusal, tokenOf } from '../e2e/support.ts';
import { grpcClient, metadata } from '../e2e/support-doors.ts';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { createTestCa } from '../support/bundle-certificates.ts';
import { issueUrl, newHolder, proofOf } from './support.ts';

const certified = { tool: 'certified', tier: Tier.READ };
const policy = `
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: certified, owner: o }
spec:
  resource: https://certified.test
  ttl: { min: 1s, default: 1m, max: 5m }
  tiers: { read: { provider: jwt, revocation: immediate } }
---
apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: certified, owner: o }
spec:
  rules:
    - { name: read, agents: [analyst], tools: [certified], tiers: [read], effect: allow, obligations: { senderConstraint: mtls } }
`;

const servers = createTestCa();
// Who issued it does not matter: it is what its holder can prove the key of.
const clients = createTestCa('Client root');
const mine = clients.issue(['agent']);
const other = clients.issue(['agent']);
const thumbprint = ({ cert }: { cert: string }) =>
  createHash('sha256').update(new X509Certificate(cert).raw).digest('base64url');

let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let url: string;
let agentToken: string;
let taskId: string;

beforeAll(async () => {
  estate = await createEstate('mtls');
  const { cert, key } = servers.issue(['127.0.0.1', 'localhost']);
  const file = (name: string) => path.join(estate.dir, name);
  await writeFile(file('server.pem'), cert);
  await writeFile(file('server-key.pem'), key, { mode: 0o600 });
  await writeFile(file('ca.pem'), servers.certificate);
  await writeFile(file('mine.pem'), mine.cert);
  await writeFile(file('mine-key.pem'), mine.key, { mode: 0o600 });
  await writeFile(path.join(estate.policyDir, 'certified.yaml'), policy);
  url = `https://127.0.0.1:${estate.httpPort}`;
  const config = parse(await readFile(estate.configFile, 'utf8')) as {
    broker: { issuer: string };
    server: Record<'grpc' | 'http', { tls?: object }>;
  };
  config.broker.issuer = url;
  const tls = { certFile: file('server.pem'), keyFile: file('server-key.pem'), requestClientCertificate: true };
  for (const door of ['grpc', 'http'] as const) config.server[door].tls = tls;
  await writeFile(estate.configFile, stringify(config));
  broker = await startInProcess(estate);
  agentToken = await estate.mint('agent/analyst');
  const tasks = createClient(TaskService, transport(await estate.mint('orchestrator')));
  const { task, plan } = await tasks.openTask({ intent: 'over TLS', agent: 'analyst', tools: [certified] });
  expect(plan[0]).toMatchObject({ senderConstraint: 2 });
  taskId = task!.taskId;
});
afterAll(async () => {
  await broker?.stop(500);
  await estate?.remove();
});

function transport(token: string, certificate?: { cert: string; key: string }) {
  return createConnectTransport({
    baseUrl: url,
    httpVersion: '1.1',
    nodeOptions: { agent: new Agent({ ca: servers.certificate, ...certificate }) },
    interceptors: [
      (next) => async (request) => {
        request.header.set('authorization', `Bearer ${token}`);
        return await next(request);
      },
    ],
  });
}
const agent = (certificate?: { cert: string; key: string }) =>
  createClient(CredentialService, transport(agentToken, certificate));
const bound = { bindToCertificate: true };

describe('a credential that policy wants bound to a client certificate', () => {
  test('is refused without, with what to do, and issued over a connection with one', async () => {
    expect(await refusal(agent(mine).issueCredential({ taskId, ...certified }))).toMatchObject({
      reason: 'POLICY_DENIED',
      message: expect.stringContaining('bind_to_certificate'),
    });
    expect(await refusal(agent().issueCredential({ taskId, ...certified, ...bound }))).toMatchObject({
      reason: 'FIELD_INVALID',
      message: expect.stringContaining('this connection has none'),
    });
    const issued = held(await agent(mine).issueCredential({ taskId, ...certified, ...bound }));
    expect(decodeJwt(tokenOf(issued))['cnf']).toEqual({ 'x5t#S256': thumbprint(mine) });
  });

  test('is bound to nothing else: a key does not do, and not both', async () => {
    const dpopProof = await proofOf(newHolder(), issueUrl(url), {});
    expect(await refusal(agent(mine).issueCredential({ taskId, ...certified, dpopProof }))).toMatchObject({
      reason: 'POLICY_DENIED',
    });
    expect(await refusal(agent(mine).issueCredential({ taskId, ...certified, ...bound, dpopProof }))).toMatchObject({
      reason: 'FIELD_INVALID',
      message: expect.stringContaining('one binding'),
    });
  });

  test('is renewed with the same certificate, and with no other', async () => {
    const { lease } = held(await agent(mine).issueCredential({ taskId, ...certified, ...bound }));
    for (const wrong of [other, undefined]) {
      expect(await refusal(agent(wrong).renewCredential({ leaseId: lease.leaseId }))).toMatchObject({
        reason: 'FIELD_INVALID',
        message: expect.stringContaining(thumbprint(mine)),
      });
    }
    const next = held(await agent(mine).renewCredential({ leaseId: lease.leaseId }));
    expect(decodeJwt(tokenOf(next))['cnf']).toEqual({ 'x5t#S256': thumbprint(mine) });
  });

  test('comes again for the same request with the same certificate alone', async () => {
    const requestId = '0d9f3bfe-3f4e-4f7e-9a51-0c0f5d1f2a11';
    const first = held(await agent(mine).issueCredential({ requestId, taskId, ...certified, ...bound }));
    const again = held(await agent(mine).issueCredential({ requestId, taskId, ...certified, ...bound }));
    expect(again.lease.leaseId).toBe(first.lease.leaseId);
    expect(await refusal(agent(other).issueCredential({ requestId, taskId, ...certified, ...bound }))).toMatchObject({
      reason: 'REQUEST_ID_REUSED',
    });
  });

  test('is had through the gRPC door as well', async () => {
    const ssl = credentials.createSsl(Buffer.from(servers.certificate), Buffer.from(mine.key), Buffer.from(mine.cert));
    const grpc = grpcClient(estate.grpcPort, ssl);
    try {
      const request = { taskId, ...certified, ...bound };
      const { answer } = (await grpc.call(
        CredentialService.method.issueCredential,
        request,
        metadata(`Bearer ${agentToken}`),
      )) as { answer: Parameters<typeof held>[0] };
      expect(decodeJwt(tokenOf(held(answer)))['cnf']).toEqual({ 'x5t#S256': thumbprint(mine) });
    } finally {
      grpc.close();
    }
  });
});

test('the resource server takes the token with that certificate, and never without', async () => {
  const token = tokenOf(held(await agent(mine).issueCredential({ taskId, ...certified, ...bound })));
  const [response] = (await once(get(`${url}/.well-known/jwks.json`, { ca: servers.certificate }), 'response')) as [
    IncomingMessage,
  ];
  const jwks = (await json(response)) as JSONWebKeySet;
  const tool = createVerifier({ issuer: url, audience: 'https://certified.test', jwks, feed: 'none' });
  const raw = ({ cert }: { cert: string }) => new X509Certificate(cert).raw;
  expect(await tool.verify(token, { certificate: raw(mine) })).toMatchObject({
    boundBy: 'mtls',
    boundTo: thumbprint(mine),
  });
  await expect(tool.verify(token, { certificate: raw(other) })).rejects.toMatchObject({ code: 'proof_invalid' });
  await expect(tool.verify(token, { certificate: undefined })).rejects.toMatchObject({ code: 'proof_missing' });
  await expect(tool.verify(token)).rejects.toMatchObject({ code: 'proof_missing' });
  const proof = await proofOf(newHolder(), 'https://certified.test/', {});
  await expect(tool.verify(token, { proof, method: 'POST', url: 'https://certified.test/' })).rejects.toMatchObject({
    code: 'proof_missing',
  });
});

test('the program presents a certificate from files, whose key nobody else may read', async () => {
  const file = (name: string) => path.join(estate.dir, name);
  await writeFile(file('agent.jwt'), agentToken, { mode: 0o600 });
  await writeFile(file('open-key.pem'), mine.key, { mode: 0o644 });
  const issue = (key: string) =>
    runCli([
      ...['credential', 'issue', taskId, '--tool', 'certified:read', '--format', 'token'],
      ...['--server', url, '--token-file', file('agent.jwt'), '--ca-file', file('ca.pem')],
      ...['--client-cert', file('mine.pem'), '--client-key', file(key)],
    ]);
  const issued = await issue('mine-key.pem');
  expect(issued).toMatchObject({ code: 0 });
  expect(decodeJwt(issued.stdout.trim())['cnf']).toEqual({ 'x5t#S256': thumbprint(mine) });
  expect(await issue('open-key.pem')).toMatchObject({ code: 2, stderr: expect.stringContaining('chmod 600') });
});
