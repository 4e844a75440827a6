import { createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { refusal } from '../e2e/support.ts';
import { startInProcess } from '../support/broker.ts';
import { databaseEstate, operator, type PolicyText } from './support.ts';

let estate: Awaited<ReturnType<typeof databaseEstate>>;
let broker: Awaited<ReturnType<typeof startInProcess>>;

beforeAll(async () => {
  estate = await databaseEstate('large');
  broker = await startInProcess(estate);
});
afterAll(async () => {
  await broker?.stop(500);
  await estate?.remove();
});

/** So many agents that one message is several times as large as others may be. */
async function largePolicy(owner: string): Promise<PolicyText[]> {
  const agents = Array.from(
    { length: 3_000 },
    (_, n) =>
      `apiVersion: leasehold.dev/v1\nkind: Agent\nmetadata: { name: a${n}, owner: ${owner}, description: ${'d'.repeat(150)} }\nspec: { workloads: [spiffe://dev.leasehold.test/fleet/${n}] }\n`,
  );
  const content = Buffer.from(agents.join('---\n'));
  expect(content.byteLength).toBeGreaterThan(700_000);
  return [...(await estate.files()), { path: 'fleet.yaml', content }];
}

test('the policy of a large estate is applied and read through both doors', async () => {
  // Other methods have the bound that they had.
  const context = Object.fromEntries(Array.from({ length: 64 }, (_, n) => [`k${n}`, 'v'.repeat(4_096)]));
  const many = { intent: 'x', agent: 'analyst', context };
  expect(await refusal(estate.client(TaskService, 'orchestrator').openTask(many))).toMatchObject({
    reason: 'TOO_LARGE',
  });

  const connect = operator(estate);
  const first = await connect.applyPolicy({ files: await largePolicy('one') });
  expect(first.activated).toBe(true);
  const { documents } = await connect.getRevision({});
  expect(documents.length).toBeGreaterThan(700_000);

  const token = await estate.mint('operator');
  const grpc = createClient(
    PolicyService,
    createGrpcTransport({
      baseUrl: `http://127.0.0.1:${estate.grpcPort}`,
      interceptors: [
        (next) => async (request) => {
          request.header.set('authorization', `Bearer ${token}`);
          return await next(request);
        },
      ],
    }),
  );
  const second = await grpc.applyPolicy({ files: await largePolicy('two') });
  expect(second.changes).toHaveLength(3_000);
  expect((await grpc.getRevision({})).documents.length).toBeGreaterThan(700_000);
  await grpc.rollbackPolicy({ digest: first.revision!.digest });

  // Beyond its own bound it is refused.
  const five = { path: 'x.yaml', content: Buffer.alloc(1_000_000, '#') };
  for (const client of [connect, grpc]) {
    expect(await refusal(client.applyPolicy({ files: [five, five, five, five, five] }))).toMatchObject({
      reason: 'TOO_LARGE',
    });
  }
});
