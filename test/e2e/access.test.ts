import { getOption } from '@bufbuild/protobuf';
import type { DescMethod, DescMethodServerStreaming, DescMethodUnary } from '@bufbuild/protobuf';
import { ConnectError } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { access, Role } from '../../src/gen/leasehold/v1/options_pb.js';
import type { Refusal, Served } from './support.ts';
import { refusalOf, serve } from './support.ts';
import { everyMethod } from '../support/methods.ts';
import { grpcClient, metadata } from './support-doors.ts';

const methods = await everyMethod();
const named = methods.map((method) => [`${method.parent.name}/${method.name}`, method] as const);
/** One workload for each role, as the estate's configuration and policy grant them. */
const holders = new Map<Role, string>([
  [Role.ORCHESTRATOR, 'orchestrator'],
  [Role.AGENT, 'agent/analyst'],
  [Role.RESOURCE_SERVER, 'tool/reports'],
  [Role.OPERATOR, 'operator'],
  [Role.AUDITOR, 'auditor'],
  [Role.APPROVER, 'approver/ann'],
  [Role.SIGNAL_SOURCE, 'scanner'],
]);

let served: Served;
let grpc: ReturnType<typeof grpcClient>;
const tokens = new Map<string, string>();

beforeAll(async () => {
  served = await serve('access');
  grpc = grpcClient(served.estate.grpcPort);
  for (const workload of [...holders.values(), 'nobody']) tokens.set(workload, await served.estate.mint(workload));
});
afterAll(async () => {
  grpc.close();
  await served.stop();
});

/** An empty message over the HTTP door; `undefined` when it is answered. */
async function overHttp(method: DescMethod, token: string | undefined): Promise<Refusal | undefined> {
  const transport = createConnectTransport({ baseUrl: served.estate.httpUrl, httpVersion: '1.1' });
  const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
  const stop = new AbortController();
  try {
    if (method.methodKind === 'unary')
      await transport.unary(method as DescMethodUnary, stop.signal, 5_000, headers, {}, undefined);
    else {
      const input = (async function* () {
        yield {};
      })();
      const answer = await transport.stream(
        method as DescMethodServerStreaming,
        stop.signal,
        5_000,
        headers,
        input,
        undefined,
      );
      for await (const message of answer.message) if (message !== undefined) break;
    }
    return undefined;
  } catch (error) {
    return refusalOf(ConnectError.from(error));
  } finally {
    stop.abort();
  }
}

async function overGrpc(method: DescMethod, token: string | undefined, deadlineMs = 15_000) {
  const headers = metadata(token === undefined ? '' : `Bearer ${token}`);
  const result = await grpc.raw(method, new Uint8Array(), headers, deadlineMs);
  return 'failure' in result ? result.failure : undefined;
}

test('the contract has the services that the design names, and every method says who may call it', () => {
  expect([...new Set(methods.map(({ parent }) => parent.name))]).toEqual(
    expect.arrayContaining(['AdminService', 'AuditService', 'CredentialService', 'RevocationService', 'TaskService']),
  );
  for (const method of methods) {
    const { roles } = getOption(method, access);
    expect(roles.length, method.name).toBeGreaterThan(0);
    expect(roles).not.toContain(Role.UNSPECIFIED);
  }
});

describe('every RPC of the running broker', () => {
  test.each(named)('%s is refused without credentials on both doors', async (_name, method) => {
    expect(await overHttp(method, undefined)).toMatchObject({ code: 'Unauthenticated', reason: 'ATTESTATION_MISSING' });
    expect(await overGrpc(method, undefined)).toMatchObject({ code: 16, reason: 'ATTESTATION_MISSING' });
  });

  test.each(named)('%s is refused with credentials of another trust domain or of none', async (_name, method) => {
    const [header, , signature] = tokens.get('operator')!.split('.');
    const claims = { sub: 'spiffe://elsewhere.test/operator', aud: ['leasehold'], exp: 4_102_444_800 };
    const forged = `${header}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.${signature}`;
    for (const token of [forged, 'not.a.token', 'x']) {
      expect(await overHttp(method, token)).toMatchObject({ code: 'Unauthenticated' });
      expect(await overGrpc(method, token)).toMatchObject({ code: 16 });
    }
  });

  test.each(named)('%s is refused to an attested workload without a role', async (_name, method) => {
    const token = tokens.get('nobody');
    expect(await overHttp(method, token)).toMatchObject({ code: 'PermissionDenied', reason: 'ROLE_REQUIRED' });
    expect(await overGrpc(method, token)).toMatchObject({ code: 7, reason: 'ROLE_REQUIRED' });
  });

  test.each(named)('%s is open to the roles that it names and to no other', async (_name, method) => {
    const { roles } = getOption(method, access);
    for (const [role, workload] of holders) {
      const token = tokens.get(workload);
      // A stream that is let in goes on until its caller has enough.
      const endless = method.methodKind !== 'unary' && roles.includes(role);
      for (const refused of [await overHttp(method, token), await overGrpc(method, token, endless ? 500 : undefined)]) {
        if (roles.includes(role)) {
          // Past the gate an empty message is answered, or refused for what is in it.
          expect([undefined, 'FIELD_INVALID'], `${method.name} as ${workload}`).toContain(refused?.reason);
        } else expect(refused?.reason, `${method.name} as ${workload}`).toBe('ROLE_REQUIRED');
      }
    }
  });
});
