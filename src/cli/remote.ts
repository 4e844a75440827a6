// What a command needs once it runs. Commands import it with `await import()`: the program's help starts without it.
export { connect, required } from './client.ts';
export { fields, iso, jsonLine, line, moment, relative, span, table, toned } from './output.ts';
export { printable } from './printable.ts';
export * from './names.ts';
export { approvalStateName, showApproval, showApprovals } from './approval-views.ts';
export { showCall, showCalls } from './call-views.ts';
export { showLeases, showPlan, showTask, summaryText } from './views.ts';
export * from '../gen/leasehold/v1/common_pb.js';
export * from '../gen/leasehold/v1/task_service_pb.js';
export * from '../gen/leasehold/v1/credential_service_pb.js';
export * from '../gen/leasehold/v1/admin_service_pb.js';
export * from '../gen/leasehold/v1/audit_service_pb.js';
export * from '../gen/leasehold/v1/policy_service_pb.js';
export * from '../gen/leasehold/v1/report_service_pb.js';
export * from '../gen/leasehold/v1/approval_service_pb.js';
export * from '../gen/leasehold/v1/tool_call_service_pb.js';
export { durationFromMs, durationMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
export { create } from '@bufbuild/protobuf';
