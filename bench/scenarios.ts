import { randomUUID } from 'node:crypto';
import { create, toBinary, type DescMessage, type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs } from '@bufbuild/protobuf/wkt';
import { devWorkload } from '../src/dev/environment.ts';
import { Tier } from '../src/gen/leasehold/v1/common_pb.js';
import {
  CredentialService,
  IssueCredentialRequestSchema,
  RenewCredentialRequestSchema,
} from '../src/gen/leasehold/v1/credential_service_pb.js';
import { CloseTaskRequestSchema, OpenTaskRequestSchema, TaskService } from '../src/gen/leasehold/v1/task_service_pb.js';
import {
  BatchRecordToolCallsRequestSchema,
  BeginToolCallRequestSchema,
  EndToolCallRequestSchema,
  RecordToolCallRequestSchema,
  ToolCallOutcome,
  ToolCallService,
} from '../src/gen/leasehold/v1/tool_call_service_pb.js';
import { echoPath } from './echo-service.ts';
import type { Estate } from './estate.ts';
import type { RpcWork, SliceResult, Step, Work } from './protocol.ts';
import { checkIssued, checkRecorded, dropRoles, quiet, vaultMade } from './settle.ts';
import { credsPath, makeTokens, vaultOf, vaultQuiet } from './vault.ts';

export interface Scenario {
  /** As on the command line. */
  name: string;
  /** Where one name is several measurements. */
  variant?: string;
  /** What one operation is. */
  operation: string;
  /** Sets one slice up; not timed. */
  prepare(estate: Estate, concurrency: number, seconds: number): Promise<Prepared>;
}

export interface Prepared {
  work: Work;
  /** Checks what the slice did, and clears away what would weigh on the next one; not timed. Throws when it is wrong. */
  after?: (result: SliceResult) => Promise<void>;
  /** Tasks made for this slice. */
  tasks?: string[];
}

const agent = 'agent/analyst';
export const reports = { tool: 'reports', tier: Tier.READ };
const warehouse = { tool: 'warehouse', tier: Tier.READ };
/** Of the Vault beside the broker (src/dev/vault-estate.ts). */
export const ledger = { tool: 'ledger', tier: Tier.READ };
const someTask = `tsk_${'0'.repeat(32)}`;
const someLease = `lse_${'0'.repeat(32)}`;
const someCall = `cal_${'0'.repeat(32)}`;
/** What an agent does in a second or two. */
const batchOfCalls = 20;
const someId = '00000000-0000-4000-8000-000000000000';
/** More verifications in a second than this machine can do; bounds the time that minting takes. */
const coldTokensPerSecond = 3_000;
const mintedAtOnce = 256;

export const scenarios: readonly Scenario[] = [
  {
    name: 'echo',
    operation: 'an empty unary RPC through the whole chain of the same gRPC server',
    prepare: async (estate) => ({ work: await echo(estate) }),
  },
  {
    name: 'commit',
    operation: "two single-row inserts in one transaction, one message, one connection, in the broker's database",
    prepare: async (estate) => {
      await estate.database.query(`CREATE TABLE IF NOT EXISTS bench_commit (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, detail text NOT NULL)`);
      const insert = `INSERT INTO leasehold.bench_commit (detail) VALUES ('${'x'.repeat(200)}')`;
      return { work: { kind: 'sql', url: estate.databaseUrl, text: `${insert}; ${insert}`, connections: 1 } };
    },
  },
  {
    name: 'issue-jwt',
    operation: 'IssueCredential of a tier with provider jwt',
    prepare: async (estate, concurrency) => {
      const tasks = await openTasks(estate, concurrency);
      const work = await issue(estate, tasks, reports);
      return { work, tasks, after: (result) => checkIssued(estate, tasks, result.latencies.length) };
    },
  },
  {
    name: 'renew',
    operation: 'RenewCredential of the lease that the last renewal made',
    prepare: async (estate, concurrency) => {
      const tasks = await openTasks(estate, concurrency);
      const leases = await issueEach(estate, tasks, reports);
      const template = encode(RenewCredentialRequestSchema, { requestId: someId, leaseId: someLease });
      const step = holes({ path: path(CredentialService.method.renewCredential), template, take: 'lse_' });
      return { work: await rpc(estate, [step], agent, leases), after: () => quiet(estate) };
    },
  },
  {
    name: 'open-close',
    operation: 'OpenTask, then CloseTask of that task: two calls',
    prepare: async (estate) => {
      const open = encode(OpenTaskRequestSchema, openRequest());
      const close = encode(CloseTaskRequestSchema, { requestId: someId, taskId: someTask });
      const steps = [
        holes({ path: path(TaskService.method.openTask), template: open, take: 'tsk_' }),
        holes({ path: path(TaskService.method.closeTask), template: close }),
      ];
      return { work: await rpc(estate, steps, 'orchestrator', []), after: () => quiet(estate) };
    },
  },
  {
    name: 'tool-calls',
    operation: 'RecordToolCall of one task: the record, its count and its event',
    prepare: (estate) =>
      recording(estate, 1, ({ requestId, ...call }) => [
        {
          path: path(ToolCallService.method.recordToolCall),
          template: encode(RecordToolCallRequestSchema, { call: { requestId, ...call }, ...ended }),
        },
      ]),
  },
  {
    name: 'tool-calls',
    variant: 'begin and end',
    operation: 'BeginToolCall, then EndToolCall of that call: two calls',
    prepare: (estate) =>
      recording(estate, 1, (call) => [
        {
          path: path(ToolCallService.method.beginToolCall),
          template: encode(BeginToolCallRequestSchema, call),
          take: 'cal_',
        },
        {
          path: path(ToolCallService.method.endToolCall),
          template: encode(EndToolCallRequestSchema, { requestId: someId, callId: someCall, ...ended }),
        },
      ]),
  },
  {
    name: 'tool-calls',
    variant: `batches of ${batchOfCalls}`,
    operation: `BatchRecordToolCalls of ${batchOfCalls} calls of one task`,
    prepare: (estate) =>
      recording(estate, batchOfCalls, (call) => {
        const requests = Array.from({ length: batchOfCalls }, () => ({ call: { ...call, requestId: '' }, ...ended }));
        const template = encode(BatchRecordToolCallsRequestSchema, { requests });
        return [{ path: path(ToolCallService.method.batchRecordToolCalls), template }];
      }),
  },
  {
    name: 'verify-attestation',
    variant: 'cold',
    operation: 'the echo call, each with a token that the broker has not seen',
    prepare: async (estate, _concurrency, seconds) => {
      const tokens: string[] = [];
      const wanted = Math.ceil(seconds * coldTokensPerSecond);
      while (tokens.length < wanted) {
        const batch = Math.min(mintedAtOnce, wanted - tokens.length);
        tokens.push(...(await Promise.all(Array.from({ length: batch }, () => estate.mint(agent)))));
      }
      return { work: { ...(await echo(estate)), tokens } };
    },
  },
  {
    name: 'verify-attestation',
    variant: 'warm',
    operation: 'the echo call with a token that was verified before',
    prepare: async (estate) => ({ work: await echo(estate) }),
  },
  {
    name: 'issue-postgres',
    variant: 'bare',
    operation:
      'CREATE ROLE … LOGIN PASSWORD … VALID UNTIL … and GRANT in one transaction, by a superuser, one connection per slot',
    prepare: async (estate) => {
      const until = new Date(Date.now() + 600_000).toISOString();
      const text =
        `CREATE ROLE "bench_{{n}}" LOGIN PASSWORD '${randomUUID()}' VALID UNTIL '${until}';\n` +
        'GRANT "warehouse_read" TO "bench_{{n}}"';
      return { work: { kind: 'sql', url: estate.targetUrl, text }, after: () => dropRoles(estate, 'bench_') };
    },
  },
  {
    name: 'issue-postgres',
    operation: 'IssueCredential of a tier with provider postgres',
    prepare: async (estate, concurrency) => {
      const tasks = await openTasks(estate, concurrency);
      const work = await issue(estate, tasks, warehouse);
      return {
        work,
        after: async (result) => {
          await checkIssued(estate, tasks, result.latencies.length);
          // Dropped in bulk, so that settling has only to look.
          await dropRoles(estate, 'lh_');
          for (const taskId of tasks) await estate.tasks.closeTask({ requestId: randomUUID(), taskId });
          await quiet(estate);
        },
      };
    },
  },
  {
    name: 'issue-vault',
    variant: 'direct',
    operation: `GET ${credsPath} at Vault itself, with a token of its own for each slot, over a kept connection`,
    prepare: async (estate, concurrency) => {
      const vault = vaultOf(estate);
      const tokens = await makeTokens(vault, concurrency);
      const headers = tokens.map(({ token }) => ({ 'x-vault-token': token }));
      const url = `${vault.address}/v1/${credsPath}`;
      return {
        work: { kind: 'http', url, headers, wanted: 'lease_id' },
        after: async () => {
          await dropRoles(estate, vaultMade);
          for (const { accessor } of tokens) await vault.root('POST', 'auth/token/revoke-accessor', { accessor });
          await vaultQuiet(estate);
        },
      };
    },
  },
  {
    name: 'issue-vault',
    operation: 'IssueCredential of a tier with provider vault; the token of each task is there already',
    prepare: async (estate, concurrency) => {
      const tasks = await openTasks(estate, concurrency, [ledger]);
      await issueEach(estate, tasks, ledger);
      const work = await issue(estate, tasks, ledger);
      return {
        work,
        after: async (result) => {
          await checkIssued(estate, tasks, result.latencies.length + tasks.length);
          await dropRoles(estate, vaultMade);
          for (const taskId of tasks) await estate.tasks.closeTask({ requestId: randomUUID(), taskId });
          await quiet(estate);
          await vaultQuiet(estate);
        },
      };
    },
  },
];

async function echo(estate: Estate): Promise<RpcWork> {
  return await rpc(estate, [{ path: echoPath, template: new Uint8Array() }], agent, []);
}

async function issue(estate: Estate, tasks: string[], access: { tool: string; tier: Tier }): Promise<RpcWork> {
  const template = encode(IssueCredentialRequestSchema, { requestId: someId, taskId: someTask, ...access });
  const step = holes({ path: path(CredentialService.method.issueCredential), template });
  return await rpc(estate, [step], agent, tasks);
}

/** What every recorded call says of its end. */
const ended = {
  outcome: ToolCallOutcome.SUCCEEDED,
  effect: { objects: ['table:public.orders'], rows: 12n },
};

interface RecordedCall {
  requestId: string;
  taskId: string;
  leaseId: string;
  action: string;
  arguments: { report: string };
}

/** All slots record calls of one task and one lease: its count is what they could be in each other's way for. */
async function recording(
  estate: Estate,
  callsPerAnswer: number,
  stepsOf: (call: RecordedCall) => Step[],
): Promise<Prepared> {
  const [taskId] = await openTasks(estate, 1);
  const [leaseId] = await issueEach(estate, [taskId!], reports);
  const steps = stepsOf({
    requestId: someId,
    taskId: taskId!,
    leaseId: leaseId!,
    action: 'reports.read',
    arguments: { report: 'quarterly' },
  });
  return {
    work: await rpc(estate, steps.map(holes), agent, []),
    after: (result) => checkRecorded(estate, taskId!, result.latencies.length * callsPerAnswer),
  };
}

async function rpc(estate: Estate, steps: Step[], workload: string, carry: string[]): Promise<RpcWork> {
  return { kind: 'rpc', port: estate.grpcPort, steps, tokens: [await estate.mint(workload)], carry };
}

function openRequest(tools = [reports, warehouse]): MessageInitShape<typeof OpenTaskRequestSchema> {
  return {
    requestId: someId,
    intent: 'benchmark',
    agent: 'analyst',
    agentWorkload: devWorkload(agent),
    tools,
    ttl: durationFromMs(3_600_000),
  };
}

/** A task per slot: as many agents at work as there are calls in flight. */
export async function openTasks(estate: Estate, count: number, tools = [reports, warehouse]): Promise<string[]> {
  const ids: string[] = [];
  for (let n = 0; n < count; n++) {
    const { task } = await estate.tasks.openTask({ ...openRequest(tools), requestId: randomUUID() });
    ids.push(task!.taskId);
  }
  return ids;
}

/** One lease for each task. */
async function issueEach(estate: Estate, tasks: string[], access: { tool: string; tier: Tier }): Promise<string[]> {
  const ids: string[] = [];
  for (const taskId of tasks) {
    const { credential } = await estate.credentials.issueCredential({ requestId: randomUUID(), taskId, ...access });
    ids.push(credential!.lease!.leaseId);
  }
  return ids;
}

function encode<D extends DescMessage>(schema: D, init: MessageInitShape<D>): Uint8Array {
  return toBinary(schema, create(schema, init));
}

function path(method: { parent: { typeName: string }; name: string }): string {
  return `/${method.parent.typeName}/${method.name}`;
}

/** Finds where the placeholders stand in the encoded request. */
function holes(step: Step): Step {
  const bytes = Buffer.from(step.template);
  const requestIdAt = bytes.indexOf(someId);
  const carryAt = [someTask, someLease, someCall].map((id) => bytes.indexOf(id)).find((at) => at >= 0);
  return {
    ...step,
    ...(requestIdAt < 0 ? {} : { requestIdAt }),
    ...(carryAt === undefined ? {} : { carryAt }),
  };
}
