import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Code, ConnectError } from '@connectrpc/connect';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ErrorReason } from '../../src/gen/leasehold/v1/errors_pb.js';
import {
  ToolCallOutcome,
  ToolCallService,
  ToolCallViolation,
  type RecordToolCallRequest,
} from '../../src/gen/leasehold/v1/tool_call_service_pb.js';
import { createCallReporter, type CallReporter, type CallReporterOptions } from '../../src/verifier/index.ts';

/** A real HTTP server that speaks the contract; what it answers to one entry is written by each test. */
type Answer = { violations?: ToolCallViolation[] } | ErrorReason;
let server: Server;
let baseUrl: string;
let batches: RecordToolCallRequest[][];
let tokens: (string | null)[];
let answer: (request: RecordToolCallRequest) => Answer;
const reporters: CallReporter[] = [];

beforeEach(async () => {
  batches = [];
  tokens = [];
  answer = () => ({});
  server = createServer(
    connectNodeAdapter({
      routes: (router) =>
        router.service(ToolCallService, {
          batchRecordToolCalls: ({ requests }, context) => {
            batches.push(requests);
            tokens.push(context.requestHeader.get('authorization'));
            return { results: requests.map((request) => resultOf(answer(request), request)) };
          },
        }),
    }),
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});

afterEach(async () => {
  await Promise.all(reporters.splice(0).map((reporter) => reporter.close()));
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

function resultOf(given: Answer, request: RecordToolCallRequest) {
  if (typeof given === 'number') {
    return { result: { case: 'error' as const, value: { reason: given, message: 'no' } } };
  }
  return { result: { case: 'call' as const, value: { callId: `cal of ${request.call!.action}`, ...given } } };
}

function reporter(change: Partial<CallReporterOptions> = {}): CallReporter {
  const made = createCallReporter({ baseUrl, token: () => 'svid', retryPause: 5, ...change });
  reporters.push(made);
  return made;
}

const token = { taskId: 'tsk', leaseId: 'lse' };
const seen = (action: string) => ({ action, outcome: 'succeeded' as const });

test('what ended together is sent together, as the tool, in messages of a bounded size', async () => {
  const tool = reporter();
  answer = (request) => (request.call!.action === 'c7' ? { violations: [ToolCallViolation.LEASE_ENDED] } : {});
  const reported = await Promise.all(Array.from({ length: 150 }, (_, n) => tool.report(token, seen(`c${n}`))));
  expect(reported[149]).toEqual({ callId: 'cal of c149', violations: [] });
  expect(reported[7]!.violations).toEqual(['lease_ended']);
  expect(batches.map((batch) => batch.length)).toEqual([100, 50]);
  expect(tokens).toEqual(['Bearer svid', 'Bearer svid']);
  expect(batches[0]![0]).toMatchObject({
    call: { taskId: 'tsk', leaseId: 'lse', action: 'c0' },
    outcome: ToolCallOutcome.SUCCEEDED,
  });
  expect(tool.waiting()).toBe(0);
});

test('what the broker could not take now is sent again under its own id, what it refuses is told', async () => {
  const tool = reporter();
  let tries = 0;
  answer = ({ call }) => {
    if (call!.action === 'wrong') return ErrorReason.LEASE_NOT_FOUND;
    return call!.action === 'later' && ++tries < 3 ? ErrorReason.STORAGE_UNAVAILABLE : {};
  };
  const [now, later, wrong] = await Promise.allSettled(
    ['now', 'later', 'wrong'].map((action) => tool.report(token, seen(action))),
  );
  expect(now!.status).toBe('fulfilled');
  expect(later!.status).toBe('fulfilled');
  expect(wrong).toMatchObject({ status: 'rejected', reason: { name: 'ReportRefused', reason: 'LEASE_NOT_FOUND' } });
  const ids = batches
    .flat()
    .filter(({ call }) => call!.action === 'later')
    .map(({ call }) => call!.requestId);
  expect(ids).toHaveLength(3);
  expect(new Set(ids).size).toBe(1);
});

test('one call that cannot be read does not take the others with it', async () => {
  const tool = reporter();
  answer = ({ call }) => {
    if (call!.action === 'unreadable') throw new ConnectError('call.action: no', Code.InvalidArgument);
    return {};
  };
  const results = await Promise.allSettled(['a', 'unreadable', 'b'].map((action) => tool.report(token, seen(action))));
  expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  expect(results[1]).toMatchObject({ reason: { reason: 'REFUSED' } });
});

test('a broker that is away is tried until it is back, or for so long; what waits is bounded', async () => {
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  const tool = reporter({ maxWaiting: 2 });
  const first = tool.report(token, seen('first'));
  const second = tool.report(token, seen('second'));
  await expect(tool.report(token, seen('third'))).rejects.toMatchObject({ reason: 'TOO_MANY' });
  const impatient = reporter({ giveUpAfter: 1 });
  await expect(impatient.report(token, seen('lost'))).rejects.toMatchObject({ reason: 'UNREACHABLE' });
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
  expect((await first).callId).toBe('cal of first');
  expect((await second).callId).toBe('cal of second');
});

test('a reporter that is closed sends what waits once more, and takes nothing new', async () => {
  const tool = reporter();
  const last = tool.report(token, seen('last'));
  await tool.close();
  expect((await last).callId).toBe('cal of last');
  await expect(tool.report(token, seen('late'))).rejects.toMatchObject({ reason: 'CLOSED' });
});
