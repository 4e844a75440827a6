import { setTimeout as sleep } from 'node:timers/promises';
import type { JsonObject, MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import type { Transport } from '@connectrpc/connect';
import { ErrorInfoSchema } from '../gen/google/rpc/error_details_pb.js';
import { ErrorReason } from '../gen/leasehold/v1/errors_pb.js';
import {
  ToolCallOutcome,
  ToolCallService,
  ToolCallViolation,
  type RecordToolCallRequestSchema,
  type ToolCallResult,
} from '../gen/leasehold/v1/tool_call_service_pb.js';
import type { Instant, Millis } from '../domain/time.ts';
import type { VerifiedToken } from './claims.ts';
import { transportOf } from './transport.ts';

/** One call as the tool saw it. */
export interface SeenCall {
  /** What was done, as the Tool document names its actions. */
  action: string;
  outcome: 'succeeded' | 'failed' | 'refused' | 'unknown';
  /** All arguments: the broker keeps their digest, and those that the Tool document declares. */
  arguments?: Record<string, unknown>;
  /** Instead: `sha256:<hex>` over their canonical form (RFC 8785). */
  argumentsDigest?: string;
  error?: string;
  effect?: { objects?: string[]; rows?: number; externalIds?: string[]; note?: string };
  startedAt?: Instant;
  endedAt?: Instant;
  /** The agent's own record of this call, where it passed its id on. */
  aboutCallId?: string;
  /** Who presented the token: the workload of the connection (mTLS), its address. */
  peer?: { workload?: string; address?: string };
}

export interface ReportedCall {
  callId: string;
  /** In what the call does not fit what was granted, such as `lease_ended`. */
  violations: readonly string[];
}

export interface CallReporterOptions {
  /** The broker's HTTP door; or give a `transport` of your own (client certificates, a proxy). */
  baseUrl?: string;
  transport?: Transport;
  /** This tool's attestation, asked for anew with every message. */
  token?: () => string | Promise<string>;
  /** Calls that wait at most; one more is refused at once. */
  maxWaiting?: number;
  /** Longest time that a call is tried for while the broker cannot be reached. */
  giveUpAfter?: Millis;
  /** Between two tries. */
  retryPause?: Millis;
  /** Longest wait for one answer. */
  timeout?: Millis;
}

export interface CallReporter {
  /** Resolves when the broker has recorded the call. Rejects with ReportRefused when it will not, or could not be asked. */
  report(token: Pick<VerifiedToken, 'taskId' | 'leaseId'>, call: SeenCall): Promise<ReportedCall>;
  waiting(): number;
  /** Tries what waits once more, then lets go. */
  close(): Promise<void>;
}

export class ReportRefused extends Error {
  override readonly name = 'ReportRefused';
  /** As in the broker's ErrorInfo, or `REFUSED`, `UNREACHABLE`, `TOO_MANY`, `CLOSED`. */
  readonly reason: string;

  constructor(reason: string, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.reason = reason;
  }
}

type Request = MessageInitShape<typeof RecordToolCallRequestSchema>;

interface Waiting {
  request: Request;
  since: number;
  resolve: (call: ReportedCall) => void;
  reject: (error: ReportRefused) => void;
}

const maxBatch = 100;
const passing = new Set(['STORAGE_UNAVAILABLE', 'RATE_LIMITED', 'SHUTTING_DOWN', 'DEADLINE_EXCEEDED', 'KEYS_STALE']);
const passingCodes = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.Aborted, Code.Internal, Code.Unknown]);
const outcomes = {
  succeeded: ToolCallOutcome.SUCCEEDED,
  failed: ToolCallOutcome.FAILED,
  refused: ToolCallOutcome.REFUSED,
  unknown: ToolCallOutcome.UNKNOWN,
} as const;

/**
 * Reports calls to ToolCallService as the tool that received them. What waits is sent together; each has an id of its own,
 * so that sending it again records nothing twice.
 */
export function createCallReporter(options: CallReporterOptions): CallReporter {
  const { maxWaiting = 10_000, giveUpAfter = 300_000, retryPause = 1_000, timeout = 10_000 } = options;
  const client = createClient(ToolCallService, transportOf(options));
  const stop = new AbortController();
  let queue: Waiting[] = [];
  let underWay = 0;
  let running: Promise<void> | undefined;

  function report(token: Pick<VerifiedToken, 'taskId' | 'leaseId'>, call: SeenCall): Promise<ReportedCall> {
    if (stop.signal.aborted) return Promise.reject(new ReportRefused('CLOSED', 'the reporter was closed'));
    if (queue.length + underWay >= maxWaiting) {
      return Promise.reject(new ReportRefused('TOO_MANY', 'too many calls wait for the broker'));
    }
    return new Promise((resolve, reject) => {
      queue.push({ request: requestOf(token, call), since: performance.now(), resolve, reject });
      running ??= run().finally(() => (running = undefined));
    });
  }

  async function run(): Promise<void> {
    // After the events of this turn: calls that ended together are sent together.
    await new Promise(setImmediate);
    while (queue.length > 0) {
      const batch = queue.splice(0, maxBatch);
      underWay = batch.length;
      const again = await send(batch);
      underWay = 0;
      const [late, rest] = partition(
        again,
        ({ since }) => performance.now() - since > giveUpAfter || stop.signal.aborted,
      );
      for (const { reject } of late) reject(new ReportRefused('UNREACHABLE', 'the broker could not be asked in time'));
      queue = [...rest, ...queue];
      if (rest.length > 0) await sleep(retryPause, undefined, { signal: stop.signal }).catch(() => undefined);
    }
  }

  /** What has to be sent again. */
  async function send(batch: Waiting[]): Promise<Waiting[]> {
    try {
      const headers = new Headers();
      if (options.token !== undefined) headers.set('authorization', `Bearer ${await options.token()}`);
      const requests = batch.map(({ request }) => request);
      const { results } = await client.batchRecordToolCalls({ requests }, { headers, timeoutMs: timeout });
      return batch.filter((waiting, index) => !settle(waiting, results[index]));
    } catch (thrown) {
      const error = ConnectError.from(thrown);
      if (passingCodes.has(error.code)) return batch;
      if (batch.length === 1) {
        batch[0]!.reject(
          new ReportRefused(error.findDetails(ErrorInfoSchema)[0]?.reason ?? 'REFUSED', error.rawMessage, error),
        );
        return [];
      }
      // One that the broker cannot even read must not take the others with it.
      const again: Waiting[] = [];
      for (const waiting of batch) again.push(...(await send([waiting])));
      return again;
    }
  }

  return {
    report,
    waiting: () => queue.length + underWay,
    close: async () => {
      stop.abort();
      await running;
    },
  };
}

/** False: to be sent again. */
function settle({ resolve, reject }: Waiting, answer: ToolCallResult | undefined): boolean {
  if (answer?.result.case === 'call') {
    const { callId, violations } = answer.result.value;
    resolve({ callId, violations: violations.map((violation) => ToolCallViolation[violation].toLowerCase()) });
    return true;
  }
  if (answer?.result.case !== 'error') return false;
  const reason = ErrorReason[answer.result.value.reason] ?? 'UNKNOWN';
  if (passing.has(reason)) return false;
  reject(new ReportRefused(reason, answer.result.value.message));
  return true;
}

function requestOf({ taskId, leaseId }: Pick<VerifiedToken, 'taskId' | 'leaseId'>, call: SeenCall): Request {
  const { effect, startedAt, endedAt, peer } = call;
  return {
    call: {
      requestId: crypto.randomUUID(),
      taskId,
      leaseId,
      action: call.action,
      argumentsDigest: call.argumentsDigest ?? '',
      aboutCallId: call.aboutCallId ?? '',
      ...(call.arguments === undefined ? {} : { arguments: call.arguments as JsonObject }),
      ...(peer === undefined ? {} : { peer }),
    },
    outcome: outcomes[call.outcome],
    error: call.error ?? '',
    ...(effect === undefined
      ? {}
      : {
          effect: {
            objects: effect.objects ?? [],
            externalIds: effect.externalIds ?? [],
            note: effect.note ?? '',
            ...(effect.rows === undefined ? {} : { rows: BigInt(effect.rows) }),
          },
        }),
    ...(startedAt === undefined ? {} : { startTime: timestampFromMs(startedAt) }),
    ...(endedAt === undefined ? {} : { endTime: timestampFromMs(endedAt) }),
  };
}

function partition<T>(items: readonly T[], test: (item: T) => boolean): [T[], T[]] {
  const yes: T[] = [];
  const no: T[] = [];
  for (const item of items) (test(item) ? yes : no).push(item);
  return [yes, no];
}
