import { createHash } from 'node:crypto';
import { argumentsDigest, boundedArguments, noArguments, type DeclaredArguments } from '../domain/arguments.ts';
import type { Caller } from '../domain/caller.ts';
import type { Credentials } from '../domain/credentials.ts';
import type { IssueRequest } from '../domain/issue.ts';
import { fieldInvalid } from '../domain/errors.ts';
import type { KeyBinding } from '../domain/model.ts';
import { CredentialService, type IssueCredentialRequest } from '../gen/leasehold/v1/credential_service_pb.js';
import { service, type Call } from './call.ts';
import { credentialMessage, leaseMessage, tierOf } from './convert.ts';
import { approvalIdField, leaseIdField, name, taskIdField, text } from './fields.ts';

/** The key of a request's proof; a request without one costs nothing. */
type TakeProof = (tenant: string, method: string, requestId: string, proof: string) => Promise<KeyBinding>;

const methods = CredentialService.method;

export function credentialService(credentials: Credentials, newRequestId: () => string, takeProof: TakeProof) {
  const proved = ({ tenant }: Caller, method: { name: string }, requestId: string, proof: string) =>
    takeProof(tenant, `${CredentialService.typeName}/${method.name}`, requestId, proof);

  const issueRequest = (
    request: Pick<
      IssueCredentialRequest,
      'requestId' | 'taskId' | 'tool' | 'tier' | 'justification' | 'arguments' | 'approval'
    >,
  ) => ({
    requestId: request.requestId || newRequestId(),
    taskId: taskIdField(request.taskId),
    access: { tool: name('tool', request.tool), tier: tierOf('tier', request.tier) },
    justification: text('justification', request.justification, 0, 2_000),
    arguments: declared(request.arguments),
    approval: request.approval === '' ? undefined : approvalIdField('approval', request.approval),
  });

  /** What a request wants its credential bound to; one that wants nothing costs nothing. */
  const bindingOf = async (
    method: { name: string },
    requestId: string,
    { dpopProof, bindToCertificate }: { dpopProof: string; bindToCertificate: boolean },
    call: Call,
  ): Promise<KeyBinding> => {
    if (!bindToCertificate) return await proved(call.caller, method, requestId, dpopProof);
    if (dpopProof !== '') throw fieldInvalid('bind_to_certificate', 'goes with no dpop_proof: a token has one binding');
    const thumbprint = call.clientCertificate();
    if (thumbprint !== undefined) return { 'x5t#S256': thumbprint };
    throw fieldInvalid(
      'bind_to_certificate',
      'needs a TLS client certificate, and this connection has none: present one, at a door of the broker that asks for it (requestClientCertificate)',
    );
  };

  return service(CredentialService, {
    issueCredential: async (request, call) => {
      const asked: IssueRequest = issueRequest(request);
      if (request.dpopProof !== '' || request.bindToCertificate) {
        asked.binding = await bindingOf(methods.issueCredential, asked.requestId, request, call);
      }
      return { credential: credentialMessage(await credentials.issue(call.caller, asked)) };
    },

    renewCredential: async (request, { caller, clientCertificate }) => {
      const requestId = request.requestId || newRequestId();
      const leaseId = leaseIdField(request.leaseId);
      const { dpopProof } = request;
      const key = dpopProof === '' ? undefined : await proved(caller, methods.renewCredential, requestId, dpopProof);
      const issued = await credentials.renew(caller, leaseId, requestId, (boundTo) => {
        if (key !== undefined || boundTo?.['x5t#S256'] === undefined) return key;
        const thumbprint = clientCertificate();
        return thumbprint === undefined ? undefined : { 'x5t#S256': thumbprint };
      });
      return { credential: credentialMessage(issued) };
    },

    returnCredential: async (request, { caller }) => ({
      lease: leaseMessage(await credentials.giveBack(caller, leaseIdField(request.leaseId))),
    }),

    streamCredential: async function* (request, call) {
      const asked: IssueRequest = issueRequest(request);
      if (request.dpopProof !== '' || request.bindToCertificate) {
        asked.binding = await bindingOf(methods.streamCredential, asked.requestId, request, call);
      }
      for await (const issued of credentials.stream(call.caller, asked, call.signal)) {
        yield { credential: credentialMessage(issued) };
      }
    },
  });
}

/** A request without arguments is one with none. */
function declared(sent: Readonly<Record<string, unknown>> | undefined): DeclaredArguments {
  if (sent === undefined || Object.keys(sent).length === 0) return noArguments;
  const values = boundedArguments(sent);
  return { values, digest: argumentsDigest(values, (text) => createHash('sha256').update(text).digest('hex')) };
}
