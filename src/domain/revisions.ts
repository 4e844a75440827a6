import type { AuditEvent } from './audit.ts';
import type { Caller } from './caller.ts';
import { BrokerError, fieldInvalid } from './errors.ts';
import type { PolicyRevision, PolicySource } from './policy.ts';
import { diffDocuments, type DocumentChange } from './revision-diff.ts';
import type { Page } from './store.ts';
import type { Clock, Instant } from './time.ts';

export type RevisionSource = 'directory' | 'git' | 'api';
export type ActivationSource = RevisionSource | 'rollback';

/** One immutable set of policy documents. */
export interface RevisionRecord {
  digest: string;
  createdAt: Instant;
  creator: string;
  source: RevisionSource;
  message: string;
}

/** One change of the revision that runs. */
export interface Activation {
  activationId: string;
  digest: string;
  activatedAt: Instant;
  actor: string;
  source: ActivationSource;
  message: string;
  reevaluation: { decided: number; ended: number; finishedAt: Instant | undefined } | undefined;
}

export interface NewRevision extends RevisionRecord {
  /** Canonical JSON. */
  documents: string;
}

export interface NewActivation {
  tenant: string;
  digest: string;
  actor: string;
  source: ActivationSource;
  message: string;
  requestId: string | undefined;
  reevaluate: boolean;
  /** Written only while this one runs; undefined: whatever runs. */
  expected: string | undefined;
}

export interface PolicyStore {
  /** Does nothing when the digest is there already. */
  recordRevision(revision: NewRevision): Promise<void>;
  /**
   * Writes activation, reevaluation and event in one transaction, and wakes every replica. Undefined when another than
   * `expected` runs. The same actor and request_id again gives the first one's row.
   */
  activate(activation: NewActivation, event: AuditEvent): Promise<Activation | undefined>;
  /** The newest activation. */
  active(tenant: string): Promise<Activation | undefined>;
  byRequest(tenant: string, actor: string, requestId: string): Promise<Activation | undefined>;
  activations(tenant: string, pageSize: number, after: string | undefined): Promise<Page<Activation>>;
  /** At most two revisions whose digest begins so. */
  find(beginning: string): Promise<RevisionRecord[]>;
  revisions(pageSize: number, after: string | undefined): Promise<Page<RevisionRecord>>;
  documents(digest: string): Promise<string | undefined>;
}

export interface PolicyFile {
  file: string;
  text: string;
}

/** What is wrong, each as `file:line:column`. */
export interface PolicyMistake {
  place: string;
  message: string;
}

export type CompileFiles = (
  files: readonly PolicyFile[],
) => { revision: PolicyRevision } | { mistakes: readonly PolicyMistake[] };

export interface RevisionsOptions {
  clock: Clock;
  policy: PolicySource;
  store: PolicyStore;
  /** The tenant whose policy this broker runs. */
  tenant: string;
  /** Whether the database drives policy, rather than a directory. */
  writable: boolean;
  compile: CompileFiles;
  /** Canonical JSON of a compiled revision's documents. */
  describe: (revision: PolicyRevision) => string;
  /** Open leases that the revision does not allow, over a bounded number. */
  preview: (revision: PolicyRevision) => Promise<{ decided: number; ended: number }>;
  /** Looks at once which revision is to run. */
  refresh: () => Promise<void>;
}

export interface Applied {
  revision: RevisionRecord;
  changes: DocumentChange[];
  activated: boolean;
  preview: { decided: number; ended: number } | undefined;
}

export type Revisions = ReturnType<typeof createRevisions>;

const maxMessage = 1_024;
/** As many as a person mends in one go; google.rpc.BadRequest has to fit a header. */
const maxMistakes = 50;

export function createRevisions(options: RevisionsOptions) {
  const { store, policy, tenant } = options;

  return {
    apply: async (
      caller: Caller,
      request: {
        requestId: string;
        files: readonly PolicyFile[];
        message: string;
        dryRun: boolean;
        reevaluate: boolean;
        expected: string;
      },
    ): Promise<Applied> => {
      ours(caller);
      // Nothing at all is a slip, not a policy that denies everything.
      if (request.files.length === 0) throw fieldInvalid('files', 'must hold the policy documents');
      if (!request.dryRun) writable();
      bounded(request.message);
      const result = options.compile(request.files);
      if ('mistakes' in result) throw invalid(result.mistakes);
      const { revision } = result;
      const documents = options.describe(revision);
      const before = await running();
      const record: RevisionRecord = {
        digest: revision.digest,
        createdAt: options.clock.now(),
        creator: caller.workload,
        source: 'api',
        message: request.message,
      };
      const changes = diffDocuments(JSON.parse(before.documents), JSON.parse(documents));
      if (request.dryRun) {
        const preview = request.reevaluate ? await options.preview(revision) : undefined;
        return { revision: record, changes, activated: false, preview };
      }
      const repeated = await earlier(caller, request.requestId, revision.digest);
      if (repeated === undefined) {
        await store.recordRevision({ ...record, documents });
        const reevaluate = request.reevaluate || revision.reevaluate;
        await activate(caller, revision.digest, 'api', { ...request, reevaluate });
      }
      const [stored] = await store.find(revision.digest);
      return { revision: stored ?? record, changes, activated: true, preview: undefined };
    },

    rollback: async (
      caller: Caller,
      request: { requestId: string; digest: string; message: string; reevaluate: boolean },
    ): Promise<{ revision: RevisionRecord; changes: DocumentChange[] }> => {
      ours(caller);
      bounded(request.message);
      const digest = digestField(request.digest);
      writable();
      const revision = await named(digest);
      const documents = await documentsOf(revision.digest);
      const before = await running();
      if ((await earlier(caller, request.requestId, revision.digest)) === undefined) {
        await activate(caller, revision.digest, 'rollback', { ...request, expected: '' });
      }
      return { revision, changes: diffDocuments(JSON.parse(before.documents), JSON.parse(documents)) };
    },

    activations: async (caller: Caller, pageSize: number, after: string | undefined) => {
      ours(caller);
      return await store.activations(tenant, pageSize, after);
    },

    revisions: async (caller: Caller, pageSize: number, after: string | undefined) => {
      ours(caller);
      return await store.revisions(pageSize, after);
    },

    get: async (caller: Caller, digest: string): Promise<{ revision: RevisionRecord; documents: string }> => {
      ours(caller);
      const revision = await named(digest === '' ? policy.current().digest : digest);
      return { revision, documents: await documentsOf(revision.digest) };
    },

    diff: async (caller: Caller, from: string, to: string) => {
      ours(caller);
      const [a, b] = [await named(from), await named(to === '' ? policy.current().digest : to)];
      const [before, after] = [await documentsOf(a.digest), await documentsOf(b.digest)];
      return { from: a.digest, to: b.digest, changes: diffDocuments(JSON.parse(before), JSON.parse(after)) };
    },

    /** Digest of the one that runs on this replica. */
    active: () => policy.current().digest,

    named,
  };

  /** Policy is one tenant's: operators of another neither see nor change it. */
  function ours(caller: Caller): void {
    if (caller.tenant === tenant) return;
    throw new BrokerError('ROLE_REQUIRED', `the policy of this broker is that of tenant ${tenant}: ask its operators`);
  }

  function writable(): void {
    if (options.writable) return;
    throw new BrokerError(
      'POLICY_SOURCE',
      "this broker's policy is a directory: change the files there, or let `policy: { source: database }` in its configuration hand policy to this method",
    );
  }

  async function running(): Promise<{ digest: string; documents: string }> {
    const active = options.writable ? await store.active(tenant) : undefined;
    const digest = active?.digest ?? policy.current().digest;
    return { digest, documents: (await store.documents(digest)) ?? '[]' };
  }

  async function earlier(caller: Caller, requestId: string, digest: string): Promise<Activation | undefined> {
    const found = await store.byRequest(tenant, caller.workload, requestId);
    if (found !== undefined && found.digest !== digest) throw reused();
    return found;
  }

  async function activate(
    caller: Caller,
    digest: string,
    source: ActivationSource,
    request: { requestId: string; message: string; reevaluate: boolean; expected: string },
  ): Promise<void> {
    const expected = request.expected === '' ? undefined : request.expected;
    const { requestId, message, reevaluate } = request;
    const written = await store.activate(
      { tenant, digest, actor: caller.workload, source, message, requestId, reevaluate, expected },
      activationEvent(tenant, caller.workload, options.clock.now(), { digest, source, message, reevaluate }),
    );
    if (written === undefined) {
      throw new BrokerError(
        'POLICY_CHANGED',
        `another revision runs than ${expected}: look at what changed with \`leasehold policy diff\`, then apply again`,
      );
    }
    if (written.digest !== digest) throw reused();
    await options.refresh();
  }

  async function named(beginning: string): Promise<RevisionRecord> {
    const digest = digestField(beginning);
    const found = await store.find(digest);
    if (found.length === 1) return found[0]!;
    const what = found.length === 0 ? 'no policy revision has' : 'more than one policy revision has';
    throw new BrokerError('REVISION_NOT_FOUND', `${what} the digest ${digest}: \`leasehold policy list\` shows them`);
  }

  async function documentsOf(digest: string): Promise<string> {
    const documents = await store.documents(digest);
    if (documents === undefined)
      throw new BrokerError('REVISION_NOT_FOUND', `no policy revision has the digest ${digest}`);
    return documents;
  }
}

function digestField(beginning: string): string {
  const digest = beginning.startsWith('sha256:') ? beginning : `sha256:${beginning}`;
  if (/^sha256:[0-9a-f]{8,64}$/.test(digest)) return digest;
  throw fieldInvalid('digest', 'must be a digest such as sha256:0f1e…, or at least 8 digits of its beginning');
}

export function activationEvent(
  tenant: string,
  actor: string,
  at: Instant,
  detail: { digest: string; source: ActivationSource; message: string; reevaluate: boolean },
): AuditEvent {
  return { tenant, kind: 'policy.activated', at, actor, taskId: '', detail };
}

function bounded(message: string): void {
  if (message.length > maxMessage) throw fieldInvalid('message', `must be at most ${maxMessage} characters`);
}

function reused(): BrokerError {
  return new BrokerError('REQUEST_ID_REUSED', 'this request_id let another revision run: send a new one');
}

function invalid(mistakes: readonly PolicyMistake[]): BrokerError {
  const [first] = mistakes;
  const more = mistakes.length > 1 ? ` (and ${mistakes.length - 1} more)` : '';
  return new BrokerError('POLICY_INVALID', `${first?.place}: ${first?.message}${more}`, {
    violations: mistakes
      .slice(0, maxMistakes)
      .map(({ place, message }) => ({ field: place.slice(0, 256), description: message.slice(0, 500) })),
  });
}
