import { randomUUID } from 'node:crypto';
import { generateKeyPair } from 'jose';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { analystId, clientWith, held, openTask, refusal, reportsRead } from '../e2e/support.ts';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { followFeed, serveSignals, type SignalEstate } from './support.ts';
import { caep, risc, ssf, startTransmitter, type SetChange, type Transmitter } from './transmitter.ts';

let transmitter: Transmitter;
let served: SignalEstate;
let feed: ReturnType<typeof followFeed>;
beforeAll(async () => {
  transmitter = await startTransmitter();
  const rules = [
    { format: 'opaque', workload: 'spiffe://dev.leasehold.test/agent/{id}' },
    { format: 'iss_sub', require: { iss: transmitter.issuer }, workload: 'spiffe://dev.leasehold.test/agent/{sub}' },
    { format: 'email', member: 'user', owner: '{email}' },
    { format: 'email', owner: '{email}' },
    { format: 'uri', agent: 'crew' },
  ];
  served = await serveSignals('sigset', {
    signals: {
      transmitters: [
        {
          name: 'idp',
          issuer: transmitter.issuer,
          audiences: [transmitter.audience],
          subjects: rules,
          perSecond: 1_000,
          burst: 1_000,
        },
      ],
    },
  });
  feed = followFeed(served.estate);
});
afterAll(async () => {
  feed.stop();
  await served.stop();
  await transmitter.stop();
});
beforeEach(async () => {
  const { signals } = await served.operator.listSignals({});
  if (signals.length > 0) await served.operator.clearSignals({ signalIds: signals.map(({ signalId }) => signalId) });
});

async function push(token: string, type = 'application/secevent+jwt') {
  const response = await fetch(`${served.estate.httpUrl}/ssf/events`, {
    method: 'POST',
    headers: { 'content-type': type, accept: 'application/json' },
    body: token,
  });
  const text = await response.text();
  return { status: response.status, body: text === '' ? undefined : (JSON.parse(text) as Record<string, unknown>) };
}

const analyst = { format: 'opaque', id: 'analyst' };
const inForce = async () =>
  (await served.operator.listSignals({})).signals.map(
    ({ subject, kind, value }) => `${subject!.subject.case} ${String(subject!.subject.value)} ${kind} ${value}`,
  );

describe('a security event', () => {
  test('takes away within a moment what no longer stands', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const { lease } = held(await served.agent.issueCredential({ requestId: randomUUID(), taskId, ...reportsRead }));
    const token = await transmitter.set(
      { [caep('session-revoked')]: { initiating_entity: 'admin' } },
      { claims: { sub_id: analyst } },
    );
    expect(await push(token)).toEqual({ status: 202, body: undefined });
    await expect.poll(() => feed.revoked.has(lease.leaseId), { timeout: 10_000 }).toBe(true);
    const refused = await refusal(served.agent.issueCredential({ taskId, ...reportsRead }));
    expect(refused.reason).toBe('POLICY_DENIED');
    const [signal] = (await served.operator.listSignals({})).signals;
    expect(signal).toMatchObject({ source: transmitter.issuer, reason: 'caep session-revoked (admin)' });
    expect(signal!.expireTime).toBeDefined();
  });

  const workload = `workload ${analystId}`;
  test.each([
    [caep('session-revoked'), {}, `${workload} session_revoked 100`],
    [caep('credential-change'), { change_type: 'revoke' }, `${workload} credential_changed 100`],
    [caep('credential-change'), { change_type: 'update' }, `${workload} credential_changed 50`],
    [caep('assurance-level-change'), { change_direction: 'decrease' }, `${workload} assurance_lowered 100`],
    [caep('device-compliance-change'), { current_status: 'not-compliant' }, `${workload} device_not_compliant 100`],
    [caep('risk-level-change'), { current_level: 'HIGH' }, `${workload} risk 90`],
    [risc('account-disabled'), { reason: 'hijacking' }, `${workload} account_disabled 100`],
  ])('%s %j is in force as a signal', async (type, payload, expected) => {
    expect((await push(await transmitter.set({ [type]: payload }, { claims: { sub_id: analyst } }))).status).toBe(202);
    expect(await inForce()).toEqual([expected]);
  });

  test('that says the opposite takes back what it said, and an older one that comes later changes nothing', async () => {
    const at = Math.floor(Date.now() / 1_000);
    const said = (type: string, seconds: number) =>
      transmitter.set(
        { [type]: { event_timestamp: at - seconds } },
        { claims: { sub_id: { format: 'opaque', id: 'late' } } },
      );
    await push(await said(risc('account-disabled'), 30));
    expect(await inForce()).toHaveLength(1);
    await push(await said(risc('account-enabled'), 10));
    expect(await inForce()).toEqual([]);
    await push(await said(risc('account-disabled'), 20));
    expect(await inForce()).toEqual([]);
  });

  test.each([
    ['iss_sub', { format: 'iss_sub', iss: '$issuer', sub: 'analyst' }, [`${workload} session_revoked 100`]],
    ['iss_sub of another issuer', { format: 'iss_sub', iss: 'https://other.test', sub: 'analyst' }, []],
    ['uri', { format: 'uri', uri: 'urn:x' }, ['agent crew session_revoked 100']],
    [
      'a complex subject',
      { format: 'complex', user: { format: 'email', email: 'nobody@x.test' }, device: analyst },
      [`${workload} session_revoked 100`],
    ],
    [
      'aliases',
      { format: 'aliases', identifiers: [{ format: 'opaque', id: 'x/../y' }, analyst] },
      [`${workload} session_revoked 100`, 'workload spiffe://dev.leasehold.test/agent/x_2f.._2fy session_revoked 100'],
    ],
    ['a format that nothing maps', { format: 'did', url: 'did:x:y' }, []],
    ['no subject', undefined, []],
  ])('about %s is mapped as configured', async (_what, subject, expected) => {
    const named = JSON.parse(
      JSON.stringify({ sub_id: subject ?? null }).replace('$issuer', transmitter.issuer),
    ) as object;
    const token = await transmitter.set(
      { [caep('session-revoked')]: {} },
      { claims: subject === undefined ? {} : { ...named } },
    );
    expect((await push(token)).status).toBe(202);
    expect((await inForce()).sort()).toEqual(expected);
  });

  test('about the owner of agents is about each of them, and an owner whose account is disabled has left', async () => {
    const owner = { format: 'email', email: 'crew@leasehold.test' };
    const token = await transmitter.set({ [risc('account-disabled')]: { subject: owner } });
    expect((await push(token)).status).toBe(202);
    expect(await inForce()).toEqual(['agent crew owner_left 100']);
  });

  test('for verification, and one of a kind that means nothing here, is taken and says nothing', async () => {
    for (const type of [ssf('verification'), 'https://example.test/unheard-of']) {
      const token = await transmitter.set({ [type]: { state: 'x' } }, { claims: { sub_id: analyst } });
      expect((await push(token)).status).toBe(202);
    }
    expect(await inForce()).toEqual([]);
  });
});

describe('a token', () => {
  const event = { [caep('session-revoked')]: {} };
  const pushed = async (change: SetChange, events: Record<string, unknown> = event) =>
    push(await transmitter.set(events, { ...change, claims: { sub_id: analyst, ...change.claims } }));

  test('that is sent again is acknowledged again and changes nothing; its name for another is refused', async () => {
    const jti = randomUUID();
    const token = await transmitter.set(event, { claims: { sub_id: analyst, jti } });
    expect((await push(token)).status).toBe(202);
    const { signals } = await served.operator.listSignals({});
    await served.operator.clearSignals({ signalIds: signals.map(({ signalId }) => signalId) });
    expect((await push(token)).status).toBe(202);
    expect(await inForce()).toEqual([]);
    expect(await pushed({ claims: { jti } })).toMatchObject({ status: 400, body: { err: 'invalid_request' } });
    expect(await inForce()).toEqual([]);
  });

  const now = () => Math.floor(Date.now() / 1_000);
  test.each([
    ['of another audience', { claims: { aud: 'https://other.test' } }, 'invalid_audience'],
    ['without an audience', { claims: { aud: undefined } }, 'invalid_audience'],
    ['of an unknown issuer', { claims: { iss: 'https://other.test' } }, 'invalid_issuer'],
    ['of the type JWT', { header: { typ: 'JWT' } }, 'invalid_request'],
    ['of the type at+jwt', { header: { typ: 'at+jwt' } }, 'invalid_request'],
    ['without a type', { header: { typ: undefined } }, 'invalid_request'],
    ['with an expiry, as access tokens have', { claims: { exp: now() + 300 } }, 'invalid_request'],
    ['with a subject, as ID tokens have', { claims: { sub: 'x' } }, 'invalid_request'],
    ['from the future', { claims: { iat: now() + 600 } }, 'invalid_request'],
    ['from long ago', { claims: { iat: now() - 86_400 } }, 'invalid_request'],
    ['without a time', { claims: { iat: undefined } }, 'invalid_request'],
    ['without a name', { claims: { jti: undefined } }, 'invalid_request'],
    ['with an endless name', { claims: { jti: 'x'.repeat(257) } }, 'invalid_request'],
    ['without events', { claims: { events: {} } }, 'invalid_request'],
    ['with events that are a list', { claims: { events: ['x'] } }, 'invalid_request'],
    ['with an event that is no object', { claims: { events: { x: 1 } } }, 'invalid_request'],
    [
      'with an event that is not as defined',
      { claims: { events: { [caep('device-compliance-change')]: {} } } },
      'invalid_request',
    ],
    ['that names its own keys', { header: { jku: 'https://evil.test/keys' } }, 'invalid_key'],
    ['of an unknown key', { header: { kid: 'two' } }, 'invalid_key'],
    ['with HMAC', { header: { alg: 'HS256' }, key: new Uint8Array(32) }, 'invalid_key'],
  ] as [string, SetChange, string][])('%s is refused', async (_what, change, err) => {
    expect(await pushed(change)).toMatchObject({ status: 400, body: { err, description: expect.any(String) } });
    expect(await inForce()).toEqual([]);
  });

  test('signed by somebody else, or by nobody, is refused', async () => {
    const { privateKey } = await generateKeyPair('ES256');
    expect(await pushed({ key: privateKey })).toMatchObject({ status: 400, body: { err: 'invalid_key' } });
    expect(await push(transmitter.unsigned(event))).toMatchObject({ status: 400, body: { err: 'invalid_request' } });
    const [, claims] = (await transmitter.set(event)).split('.');
    const none = Buffer.from(JSON.stringify({ alg: 'none', typ: 'secevent+jwt' })).toString('base64url');
    expect((await push(`${none}.${claims}.AAAA`)).body).toMatchObject({ err: 'invalid_key' });
    expect(await inForce()).toEqual([]);
  });

  test('of a broken form, too long or with another content type is refused', async () => {
    for (const body of ['', 'x', 'a.b', '{}', 'x'.repeat(40_000)]) {
      expect(await push(body)).toMatchObject({ status: 400, body: { err: 'invalid_request' } });
    }
    expect((await push('x'.repeat(8_000_000))).status).toBe(400);
    const token = await transmitter.set(event, { claims: { sub_id: analyst } });
    expect(await push(token, 'application/jwt')).toMatchObject({ status: 400, body: { err: 'invalid_request' } });
    const response = await fetch(`${served.estate.httpUrl}/ssf/events`);
    expect(response.status).toBe(405);
  });

  test('is no attestation', async () => {
    const token = await transmitter.set(event, { claims: { sub_id: analyst } });
    const asCaller = clientWith(TaskService, served.estate.httpPort, token);
    expect((await refusal(asCaller.listTasks({}))).code).toBe('Unauthenticated');
  });
});

test('a transmitter that sends too often is told to wait, and nobody else is', async () => {
  const slow = await startTransmitter();
  const estate = await serveSignals('sigrate', {
    signals: {
      transmitters: [
        {
          name: 'slow',
          issuer: slow.issuer,
          audiences: [slow.audience],
          subjects: [{ format: 'opaque', agent: '{id}' }],
          perSecond: 1,
          burst: 2,
        },
      ],
    },
  });
  try {
    const answers = [];
    for (let i = 0; i < 4; i++) {
      answers.push(
        await fetch(`${estate.estate.httpUrl}/ssf/events`, {
          method: 'POST',
          headers: { 'content-type': 'application/secevent+jwt' },
          body: await slow.set({ [caep('session-revoked')]: {} }),
        }),
      );
    }
    expect(answers.map(({ status }) => status).slice(0, 2)).toEqual([202, 202]);
    const last = answers.at(-1)!;
    expect(last.status).toBe(429);
    expect(Number(last.headers.get('retry-after'))).toBeGreaterThan(0);
  } finally {
    await estate.stop();
    await slow.stop();
  }
});
