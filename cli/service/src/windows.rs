//! The service manager's side, by the `windows-service` crate.

use crate::{Registration, ServiceError, Stop, Work};
use std::{
    ffi::OsString,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use windows_service::{
    define_windows_service,
    service::{
        ServiceAccess, ServiceAction, ServiceActionType, ServiceControl, ServiceControlAccept, ServiceErrorControl,
        ServiceExitCode, ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo, ServiceStartType, ServiceState,
        ServiceStatus, ServiceType,
    },
    service_control_handler::{self, ServiceControlHandlerResult},
    service_dispatcher,
    service_manager::{ServiceManager, ServiceManagerAccess},
};

/// Pause before a failed service is started again.
const RESTART_AFTER: Duration = Duration::from_secs(5);
/// A service that ran this long starts with a clean record.
const FORGIVEN_AFTER: Duration = Duration::from_secs(3600);
/// What the service manager is told to wait for the start and the end.
const PATIENCE: Duration = Duration::from_secs(30);
/// An account with few rights, which may use the network.
const ACCOUNT: &str = "NT AUTHORITY\\LocalService";

/// What the callback of the service manager picks up: it takes no arguments of ours.
static WORK: Mutex<Option<(String, Work, Stop)>> = Mutex::new(None);

fn refused(what: &'static str, name: &str) -> impl FnOnce(windows_service::Error) -> ServiceError {
    let name = name.to_owned();
    move |error| {
        let why = match &error {
            windows_service::Error::Winapi(cause) => cause.to_string(),
            other => other.to_string(),
        };
        ServiceError::Refused { what, name, why }
    }
}

pub fn install(registration: &Registration) -> Result<(), ServiceError> {
    let name = &registration.name;
    let access = ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE;
    let manager = ServiceManager::local_computer(None::<&str>, access).map_err(refused("register", name))?;
    let info = ServiceInfo {
        name: name.into(),
        display_name: (&registration.display_name).into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: registration.program.clone(),
        launch_arguments: registration.arguments.clone(),
        dependencies: vec![],
        account_name: Some(ACCOUNT.into()),
        account_password: None,
    };
    let access = ServiceAccess::CHANGE_CONFIG | ServiceAccess::START;
    let service = manager.create_service(&info, access).map_err(refused("register", name))?;
    service.set_description(&registration.description).map_err(refused("describe", name))?;
    let restart = ServiceAction { action_type: ServiceActionType::Restart, delay: RESTART_AFTER };
    service
        .update_failure_actions(ServiceFailureActions {
            reset_period: ServiceFailureResetPeriod::After(FORGIVEN_AFTER),
            reboot_msg: None,
            command: None,
            actions: Some(vec![restart]),
        })
        .map_err(refused("restart", name))
}

pub fn remove(name: &str) -> Result<(), ServiceError> {
    let manager = ServiceManager::local_computer(None::<&str>, ServiceManagerAccess::CONNECT);
    let manager = manager.map_err(refused("remove", name))?;
    let access = ServiceAccess::STOP | ServiceAccess::DELETE;
    let service = manager.open_service(name, access).map_err(refused("remove", name))?;
    let _ = service.stop(); // it may not be running
    service.delete().map_err(refused("remove", name))
}

define_windows_service!(called_by_windows, service_main);

pub fn run(name: &str, work: Work, stop: Stop) -> Result<(), ServiceError> {
    *WORK.lock().unwrap_or_else(PoisonError::into_inner) = Some((name.to_owned(), work, stop));
    service_dispatcher::start(name, called_by_windows).map_err(|_| ServiceError::NotAService(name.to_owned()))
}

fn service_main(_: Vec<OsString>) {
    let Some((name, work, stop)) = WORK.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let handler = move |control| match control {
        ServiceControl::Stop | ServiceControl::Shutdown | ServiceControl::Preshutdown => {
            stop();
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    let Ok(handle) = service_control_handler::register(name, handler) else { return };
    let status = |current_state, exit_code| ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state,
        controls_accepted: match current_state {
            ServiceState::Running => ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN,
            _ => ServiceControlAccept::empty(),
        },
        exit_code: ServiceExitCode::Win32(exit_code),
        checkpoint: 0,
        wait_hint: PATIENCE,
        process_id: None,
    };
    // Nobody is left to be told that the service manager does not listen.
    let _ = handle.set_service_status(status(ServiceState::Running, 0));
    let code = work();
    let _ = handle.set_service_status(status(ServiceState::Stopped, code));
}
